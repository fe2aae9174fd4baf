"""The streamed softmax against the dense float64 reference, by looping over shards in one process."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from instcls_tf import partition, softmax, tiles
from instcls_tf.labels import label_distribution, select_targets
from tests import reference
from tests.reference import relative_error

NUM_CLASSES, SIZE, HARD = 101, 16, 5
# Both sides of every edge between two and between three shards, the outer edges, and one id without company.
IDS = np.repeat([0, 33, 34, 50, 51, 67, 68, 100, 17], [2, 2, 2, 2, 2, 2, 2, 2, 1]).astype(np.int32)
# (shards, classes per tile): one tile, tiles that end beyond their shards, and tiles that end with the first shard.
SPLITS = [(1, 256), (2, 8), (3, 17)]
LOSSES = [("marginal", 0.0), ("cross_entropy", 0.0), ("marginal", 0.2), ("cross_entropy", 0.2)]


@pytest.fixture
def tile_classes(monkeypatch):
    """Sets the number of classes per tile."""

    def set_tile_classes(number: int) -> None:
        monkeypatch.setattr(tiles, "tile_classes", lambda *_: number)

    return set_tile_classes


def weights() -> np.ndarray:
    random = np.random.default_rng(1)
    rows = random.normal(size=[NUM_CLASSES, SIZE]) * random.uniform(0.5, 2.0, [NUM_CLASSES, 1])
    return rows.astype(np.float32)


def embeddings() -> np.ndarray:
    """Some rows near their own class, some not: about half of them are recognised."""
    noise = np.random.default_rng(2).normal(size=[len(IDS), SIZE]) * np.linspace(0.2, 3, len(IDS))[:, np.newaxis]
    return reference.normalize(weights()[IDS] + noise).astype(np.float32)


def hard_negatives() -> np.ndarray:
    return reference.hard_negatives(weights().astype(np.float64), HARD)[IDS].astype(np.int32)


class Result(NamedTuple):
    loss: np.ndarray
    embedding_gradient: np.ndarray  # [B, D] for the normalised embeddings
    weight_gradient: np.ndarray  # [N, D]
    exp_sum: np.ndarray  # [B]
    own_logit: np.ndarray  # [B]
    max_negative: np.ndarray  # [B]
    shift: softmax.Shift | None


def stream(shards: int, smoothing_loss: str, smoothing: float, temperature: float, shift: str = "maxima") -> Result:
    """One training step: what `shards` workers do and send, in one process."""
    x, w = tf.constant(embeddings()), weights()
    hard = tf.constant(hard_negatives()) if smoothing else None
    classes, labels = label_distribution(tf.constant(IDS), hard, smoothing)
    streams = []
    for shard in range(shards):
        first, last = partition.bounds(NUM_CLASSES, shards, shard)
        columns = tf.where((classes >= first) & (classes < last), classes - first, -1)
        rows = tf.constant(w[first:last])
        targets = select_targets(columns, labels)
        streams.append((lambda begin, end, rows=rows: rows[begin:end], tf.constant(last - first), x, targets))
    if shift == "none":
        shift = None
    else:
        maxima = [softmax.row_maxima(*part, temperature) for part in streams]
        shift = softmax.Shift(*(tf.reduce_max(tf.stack(part), axis=0) for part in zip(*maxima)))

    sums = [softmax.forward_pass(*part, shift, temperature, smoothing_loss) for part in streams]
    exp_sum, target_sum, own_logit = (
        tf.add_n([getattr(part, name) for part in sums]) for name in ("exp_sum", "target_sum", "own_logit")
    )
    totals = (exp_sum, target_sum, temperature, smoothing_loss)
    gradients = [[] for _ in streams]
    for part, received in zip(streams, gradients):

        def update(tile, gradient, read=part[0], received=received):
            np.testing.assert_array_equal(tile.rows, read(tile.begin, tile.end))
            received.append(gradient.numpy())
            return tf.no_op()

        moved = softmax.backward_pass(part[0], update, *part[1:], shift, *totals)
        assert moved == part[1]
    return Result(
        tf.reduce_mean(softmax.loss_per_row(exp_sum, target_sum, shift, smoothing_loss)).numpy(),
        tf.add_n([softmax.embedding_gradient(part, *totals) for part in sums]).numpy(),
        np.concatenate([tile for received in gradients for tile in received]),
        exp_sum.numpy(),
        own_logit.numpy(),
        np.max([part.max_negative for part in sums], axis=0),
        shift,
    )


def dense_labels(smoothing: float) -> np.ndarray:
    return reference.labels(IDS, hard_negatives() if smoothing else None, smoothing, NUM_CLASSES)


def dense_logits(temperature: float) -> np.ndarray:
    x, w = embeddings().astype(np.float64), weights().astype(np.float64)
    return reference.normalize(x) @ reference.normalize(w).T / temperature


@pytest.mark.parametrize(("temperature", "shift"), [(0.15, "none"), (0.15, "maxima"), (0.01, "maxima")])
@pytest.mark.parametrize(("smoothing_loss", "smoothing"), LOSSES)
@pytest.mark.parametrize(("shards", "tile"), SPLITS)
def test_equals_dense_reference(tile_classes, shards, tile, smoothing_loss, smoothing, temperature, shift):
    tile_classes(tile)
    actual = stream(shards, smoothing_loss, smoothing, temperature, shift)
    x, w = embeddings().astype(np.float64), weights().astype(np.float64)
    loss, dx, dw, top1 = reference.softmax_loss(x, w, dense_labels(smoothing), temperature, smoothing_loss)
    tolerance = 1e-5 if temperature > 0.1 else 1e-4  # logits reach 100 at the lower one
    assert relative_error(actual.loss, loss) < tolerance
    assert relative_error(reference.through_norm(actual.embedding_gradient, x), dx) < tolerance
    assert relative_error(actual.weight_gradient, dw) < tolerance
    assert 0.2 < top1 < 0.8
    assert np.mean(actual.own_logit > actual.max_negative) == pytest.approx(top1)


@pytest.mark.parametrize(("shards", "tile"), [*SPLITS, (3, 1)])
def test_partial_sums_are_the_sums_over_all_classes(tile_classes, shards, tile):
    tile_classes(tile)
    actual, logits = stream(shards, "marginal", 0.2, 0.15), dense_logits(0.15)
    np.testing.assert_allclose(actual.shift.logits, logits.max(axis=1), rtol=1e-5)
    of_targets = np.where(dense_labels(0.2) > 0, logits, -np.inf).max(axis=1)
    np.testing.assert_allclose(actual.shift.targets, of_targets, rtol=1e-5)
    np.testing.assert_allclose(
        actual.exp_sum, np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1), rtol=1e-5
    )
    rows = np.arange(len(IDS))
    np.testing.assert_allclose(actual.own_logit, logits[rows, IDS], rtol=1e-5, atol=1e-6)
    logits[rows, IDS] = -np.inf
    np.testing.assert_allclose(actual.max_negative, logits.max(axis=1), rtol=1e-5)


def test_without_smoothing_both_losses_are_eq_1(tile_classes):
    tile_classes(8)
    marginal, cross_entropy = (stream(2, loss, 0.0, 0.15) for loss in ("marginal", "cross_entropy"))
    logits = dense_logits(0.15)
    eq1 = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(IDS)), IDS])
    for actual in (marginal, cross_entropy):
        assert relative_error(actual.loss, eq1) < 1e-6
    assert relative_error(marginal.embedding_gradient, cross_entropy.embedding_gradient) < 1e-5
    assert relative_error(marginal.weight_gradient, cross_entropy.weight_gradient) < 1e-5
    # ... and with smoothing they are not the same thing.
    assert stream(2, "cross_entropy", 0.2, 0.15).loss > stream(2, "marginal", 0.2, 0.15).loss + 0.1


@pytest.mark.parametrize(("smoothing_loss", "smoothing"), LOSSES)
def test_gradient_is_the_slope_of_the_loss(tile_classes, smoothing_loss, smoothing):
    """Central differences of the loss alone, written once more in float64, along random directions."""
    tile_classes(7)
    x, w = embeddings().astype(np.float64), weights().astype(np.float64)
    y = dense_labels(smoothing)

    def loss(x, w):
        logits = (x / np.sqrt((x**2).sum(1))[:, None]) @ (w / np.sqrt((w**2).sum(1))[:, None]).T / 0.15
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.log((y * np.exp(log_p)).sum(1)) if smoothing_loss == "marginal" else (y * log_p).sum(1)
        return -rows.mean()

    actual = stream(3, smoothing_loss, smoothing, 0.15)
    random, step = np.random.default_rng(3), 1e-5
    for _ in range(3):
        dx, dw = random.normal(size=x.shape), random.normal(size=w.shape)
        along_x = np.sum(reference.through_norm(actual.embedding_gradient, x) * dx)
        along_w = np.sum(actual.weight_gradient * dw)
        assert along_x == pytest.approx((loss(x + step * dx, w) - loss(x - step * dx, w)) / (2 * step), rel=1e-3)
        assert along_w == pytest.approx((loss(x, w + step * dw) - loss(x, w - step * dw)) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.02, 0.0249, 0.025])
@pytest.mark.parametrize("smoothing_loss", softmax.SMOOTHING_LOSSES)
def test_shift_keeps_the_worst_row_finite(smoothing_loss, temperature):
    """The own class opposite to the embedding, another one on it: exp spans the whole range of float32."""
    w = tf.constant([[-1.0, 0.0], [1.0, 0.0]])
    x = tf.constant([[1.0, 0.0]])
    targets = select_targets(tf.constant([[0]]), tf.constant([[1.0]]))
    part = (lambda begin, end: w[begin:end], tf.constant(2), x, targets)
    cold = temperature < softmax.SMALLEST_UNSHIFTED_TEMPERATURE
    shift = softmax.row_maxima(*part, temperature) if cold else None
    sums = softmax.forward_pass(*part, shift, temperature, smoothing_loss)
    loss = softmax.loss_per_row(sums.exp_sum, sums.target_sum, shift, smoothing_loss)
    assert loss.numpy() == pytest.approx(2 / temperature, rel=1e-5)
    gradient = softmax.embedding_gradient(sums, sums.exp_sum, sums.target_sum, temperature, smoothing_loss)
    np.testing.assert_allclose(gradient, [[2 / temperature, 0]], rtol=1e-5)


def test_no_shift_is_needed_from_its_limit_on():
    # A thousand million classes at exp(1 / tau), and one at exp(-1 / tau), which must not be flushed to zero.
    largest = np.exp(1 / softmax.SMALLEST_UNSHIFTED_TEMPERATURE)
    assert 1e9 * largest < np.finfo(np.float32).max / 1e3
    assert 1 / largest > 1e3 * np.finfo(np.float32).tiny


def test_label_distribution():
    hard = tf.constant([[5, 2, 9, 1], [0, 3, 4, 6]])
    classes, labels = label_distribution(tf.constant([7, 8]), hard, 0.2)
    np.testing.assert_array_equal(classes, [[7, 5, 2, 9, 1], [8, 0, 3, 4, 6]])
    np.testing.assert_allclose(labels, [[0.8, 0.05, 0.05, 0.05, 0.05]] * 2, rtol=1e-6)
    for arguments in ((None, 0.2), (hard, 0.0)):
        classes, labels = label_distribution(tf.constant([7, 8]), *arguments)
        np.testing.assert_array_equal(classes, [[7], [8]])
        np.testing.assert_array_equal(labels, [[1.0], [1.0]])


def test_select_targets_keeps_streamed_classes_in_order():
    columns = tf.constant([[4, -1, 0], [-1, 7, 4], [2, 0, -1]])
    labels = tf.constant([[0.8, 0.1, 0.2], [0.8, 0.3, 0.4], [0.7, 0.5, 0.6]])
    targets = select_targets(columns, labels)
    np.testing.assert_array_equal(targets.column, [0, 0, 2, 4, 4, 7])
    np.testing.assert_array_equal(targets.row, [0, 2, 2, 0, 1, 1])
    np.testing.assert_allclose(targets.label, [0.2, 0.5, 0.7, 0.8, 0.4, 0.3])
    np.testing.assert_array_equal(targets.is_own, [False, False, True, True, False, False])


@pytest.mark.parametrize("smoothing_loss", softmax.SMOOTHING_LOSSES)
def test_no_tensor_is_larger_than_a_tile(monkeypatch, smoothing_loss):
    """Every output of every operation, and every request for rows, with 64 tiles."""
    batch, tile, size, hard = 32, 64, 8, 3
    num_classes = 64 * tile + 5
    monkeypatch.setattr(tiles, "tile_classes", lambda *_: tile)
    w = np.random.default_rng(4).normal(size=[num_classes, size]).astype(np.float32)
    random_ids = np.random.default_rng(5).integers(num_classes, size=[batch, hard + 1])
    labels = tf.constant([[0.7, 0.1, 0.1, 0.1]] * batch)
    asked, largest = [], 0

    def read(begin, end):
        asked.append((int(begin), int(end)))
        return tf.constant(w[int(begin) : int(end)])

    def watch(op_type, inputs, attributes, outputs, op_name=None, graph=None):
        nonlocal largest
        largest = max(largest, *(int(np.prod(tensor.shape)) for tensor in outputs), 0)

    op_callbacks.add_op_callback(watch)
    try:
        x = tf.math.l2_normalize(tf.random.stateless_normal([batch, size], [1, 2]), axis=1)
        targets = select_targets(tf.constant(random_ids, tf.int32), labels)
        part = (read, tf.constant(num_classes), x, targets)
        shift = softmax.row_maxima(*part, 0.15)
        sums = softmax.forward_pass(*part, shift, 0.15, smoothing_loss)
        totals = (sums.exp_sum, sums.target_sum, 0.15, smoothing_loss)
        softmax.backward_pass(read, lambda *_: tf.no_op(), *part[1:], shift, *totals)
    finally:
        op_callbacks.remove_op_callback(watch)
    starts = range(0, num_classes, tile)
    assert asked == [(start, min(start + tile, num_classes)) for start in starts] * 3
    assert largest == batch * tile < batch * num_classes
