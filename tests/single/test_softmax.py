"""The streamed softmax against the dense float64 reference, by looping over shards in one process."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from instcls_tf.classifier import portable_passes, softmax
from instcls_tf.classifier.labels import label_distribution, select_targets
from instcls_tf.classifier.local_classes import LocalClasses, Sgd
from instcls_tf.classifier.portable_passes import PortablePasses
from instcls_tf.classifier.shift import SMALLEST_UNSHIFTED_TEMPERATURE
from instcls_tf.classifier.softmax import Batch, Softmax, Totals
from instcls_tf.classifier.table import Table
from instcls_tf.config import SMOOTHING_LOSSES
from instcls_tf.distributed import partition
from tests import reference
from tests.reference import relative_error

NUM_CLASSES, SIZE, NUM_HARD_NEGATIVES = 101, 16, 5
# Both sides of every edge between two and between three shards, the outer edges, and one id without company.
IDS = np.repeat([0, 33, 34, 50, 51, 67, 68, 100, 17], [2, 2, 2, 2, 2, 2, 2, 2, 1]).astype(np.int32)
# (shards, classes per tile): one tile, tiles that end beyond their shards, and tiles that end with the first shard.
SPLITS = [(1, 256), (2, 8), (3, 17)]
LOSSES = [("marginal", 0.0), ("cross_entropy", 0.0), ("marginal", 0.2), ("cross_entropy", 0.2)]
# A step whose momentum is the gradient, and that moves nothing.
GRADIENT_ALONE = Sgd(tf.constant(0.0), momentum_factor=0.0, weight_decay=0.0, seed=tf.constant(0))


def weights() -> np.ndarray:
    random = np.random.default_rng(1)
    return (random.normal(size=[NUM_CLASSES, SIZE]) * random.uniform(0.5, 2.0, [NUM_CLASSES, 1])).astype(np.float32)


def embeddings() -> np.ndarray:
    """Some rows near their own class, some not: about half of them are recognised."""
    noise = np.random.default_rng(2).normal(size=[len(IDS), SIZE]) * np.linspace(0.2, 3, len(IDS))[:, np.newaxis]
    return reference.normalize(weights()[IDS] + noise).astype(np.float32)


def hard_negatives() -> np.ndarray:
    return reference.hard_negatives(weights().astype(np.float64), NUM_HARD_NEGATIVES)[IDS].astype(np.int32)


class Result(NamedTuple):
    loss: np.ndarray
    embedding_gradient: np.ndarray  # [B, D] for the normalised embeddings
    weight_gradient: np.ndarray  # [N, D]
    exp_sum: np.ndarray  # [B]
    own_logit: np.ndarray  # [B]
    max_negative: np.ndarray  # [B]
    shift: softmax.Shift | None


def classes_of(weights: np.ndarray, first: int = 0) -> LocalClasses:
    return LocalClasses(Table(tf.Variable(weights)), Table(tf.Variable(tf.zeros_like(weights))), first)


def stream(
    shards: int, tile: int, smoothing_loss: str, smoothing: float, temperature: float, xla: bool = False
) -> Result:
    """One training step: what `shards` workers do and send, in one process."""
    which = Softmax(temperature, smoothing_loss)
    lists = tf.constant(hard_negatives()) if smoothing else None
    classes, labels = label_distribution(tf.constant(IDS), lists, smoothing)
    workers = []
    for shard in range(shards):
        first, last = partition.bounds(NUM_CLASSES, shards, shard)
        columns = tf.where((classes >= first) & (classes < last), classes - first, -1)
        local = classes_of(weights()[first:last], first)
        batch = Batch(tf.constant(embeddings()), select_targets(columns, labels))
        workers.append((local, PortablePasses(local, which, tile, xla), batch))
    shift = None
    if which.needs_shift:
        maxima = [passes.local_maxima(batch) for _, passes, batch in workers]
        shift = softmax.Shift(*(tf.reduce_max(tf.stack(part), axis=0) for part in zip(*maxima)))
    workers = [(local, passes, batch._replace(shift=shift)) for local, passes, batch in workers]

    sums = [passes.forward(batch) for _, passes, batch in workers]
    exp_sum, target_sum, own_logit = (
        tf.add_n([getattr(part, name) for part in sums]) for name in ("exp_sum", "target_sum", "own_logit")
    )
    totals = Totals(exp_sum, target_sum)
    for _, passes, batch in workers:
        passes.backward(batch, totals, GRADIENT_ALONE)
    return Result(
        tf.reduce_mean(softmax.loss_per_row(totals, shift, smoothing_loss)).numpy(),
        tf.add_n([softmax.embedding_gradient(part, totals, which) for part in sums]).numpy(),
        np.concatenate([local.momentum.values.numpy() for local, *_ in workers]),
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


@pytest.mark.parametrize("temperature", [0.15, 0.01])
@pytest.mark.parametrize(("smoothing_loss", "smoothing"), LOSSES)
@pytest.mark.parametrize(("shards", "tile"), SPLITS)
def test_equals_dense_reference(shards, tile, smoothing_loss, smoothing, temperature):
    assert_equals_dense_reference(
        stream(shards, tile, smoothing_loss, smoothing, temperature), smoothing_loss, smoothing, temperature
    )


@pytest.mark.parametrize("temperature", [0.15, 0.01])
@pytest.mark.parametrize(("smoothing_loss", "smoothing"), LOSSES)
@pytest.mark.parametrize(("shards", "tile", "fewest_labels"), [(2, 8, 64), (2, 8, 1), (1, 256, 1)])
def test_compiled_by_xla_equals_dense_reference(
    shards, tile, fewest_labels, smoothing_loss, smoothing, temperature, monkeypatch
):
    """Last tiles that are shorter, and one tile; labels filled up by many, and by as few as there can be."""
    monkeypatch.setattr(portable_passes, "_FEWEST_LABELS", fewest_labels)
    actual = stream(shards, tile, smoothing_loss, smoothing, temperature, xla=True)
    assert_equals_dense_reference(actual, smoothing_loss, smoothing, temperature)


def test_labels_are_filled_up_to_a_power_of_two():
    numbers = [-(2**31), 0, 1, 64, 65, 128, 129, 1000, 2**20 - 1, 2**20, 2**20 + 1]
    filled = [int(portable_passes._power_of_two(tf.constant(number))) for number in numbers]
    assert filled == [64, 64, 64, 64, 128, 128, 256, 1024, 2**20, 2**20, 2**21]


def assert_equals_dense_reference(actual: Result, smoothing_loss: str, smoothing: float, temperature: float) -> None:
    x, w = embeddings().astype(np.float64), weights().astype(np.float64)
    loss, dx, dw, top1 = reference.softmax_loss(x, w, dense_labels(smoothing), temperature, smoothing_loss)
    tolerance = 1e-5 if temperature > 0.1 else 1e-4  # logits reach 100 at the lower one
    assert relative_error(actual.loss, loss) < tolerance
    assert relative_error(reference.through_norm(actual.embedding_gradient, x), dx) < tolerance
    assert relative_error(actual.weight_gradient, dw) < tolerance
    assert 0.2 < top1 < 0.8
    assert np.mean(actual.own_logit > actual.max_negative) == pytest.approx(top1)


@pytest.mark.parametrize(("shards", "tile"), [*SPLITS, (3, 1)])
def test_partial_sums_are_the_sums_over_all_classes(shards, tile):
    temperature = 0.02  # which needs a shift
    actual, logits = stream(shards, tile, "marginal", 0.2, temperature), dense_logits(temperature)
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


def test_without_smoothing_both_losses_are_eq_1():
    marginal, cross_entropy = (stream(2, 8, loss, 0.0, 0.15) for loss in ("marginal", "cross_entropy"))
    logits = dense_logits(0.15)
    eq1 = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(IDS)), IDS])
    for actual in (marginal, cross_entropy):
        assert relative_error(actual.loss, eq1) < 1e-6
    assert relative_error(marginal.embedding_gradient, cross_entropy.embedding_gradient) < 1e-5
    assert relative_error(marginal.weight_gradient, cross_entropy.weight_gradient) < 1e-5
    # ... and with smoothing they are not the same thing.
    assert stream(2, 8, "cross_entropy", 0.2, 0.15).loss > stream(2, 8, "marginal", 0.2, 0.15).loss + 0.1


@pytest.mark.parametrize(("smoothing_loss", "smoothing"), LOSSES)
def test_gradient_is_the_slope_of_the_loss(smoothing_loss, smoothing):
    """Central differences of the loss alone, written once more in float64, along random directions."""
    x, w = embeddings().astype(np.float64), weights().astype(np.float64)
    y = dense_labels(smoothing)

    def loss(x, w):
        logits = (x / np.sqrt((x**2).sum(1))[:, None]) @ (w / np.sqrt((w**2).sum(1))[:, None]).T / 0.15
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.log((y * np.exp(log_p)).sum(1)) if smoothing_loss == "marginal" else (y * log_p).sum(1)
        return -rows.mean()

    actual = stream(3, 7, smoothing_loss, smoothing, 0.15)
    random, step = np.random.default_rng(3), 1e-5
    for _ in range(3):
        dx, dw = random.normal(size=x.shape), random.normal(size=w.shape)
        along_x = np.sum(reference.through_norm(actual.embedding_gradient, x) * dx)
        along_w = np.sum(actual.weight_gradient * dw)
        assert along_x == pytest.approx((loss(x + step * dx, w) - loss(x - step * dx, w)) / (2 * step), rel=1e-3)
        assert along_w == pytest.approx((loss(x, w + step * dw) - loss(x, w - step * dw)) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.02, 0.0249, 0.025])
@pytest.mark.parametrize("smoothing_loss", SMOOTHING_LOSSES)
@pytest.mark.parametrize(("own", "xla"), [(0, False), (0, True), (1, True)])
def test_shift_keeps_the_worst_row_finite(smoothing_loss, temperature, own, xla):
    """The own class opposite to the embedding, another one on it: exp spans the whole range of float32.

    For XLA labels are filled up in the place of row 0 and class 0, whether that is far from the row's labels or not.
    """
    which = Softmax(temperature, smoothing_loss)
    w = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    w[own] *= -1
    local = classes_of(w)
    passes = PortablePasses(local, which, xla=xla)
    batch = Batch(tf.constant([[1.0, 0.0]]), select_targets(tf.constant([[own]]), tf.constant([[1.0]])))
    shift = passes.local_maxima(batch)
    assert (shift is not None) == (temperature < SMALLEST_UNSHIFTED_TEMPERATURE)
    sums = passes.forward(batch._replace(shift=shift))
    totals = Totals(sums.exp_sum, sums.target_sum)
    loss = softmax.loss_per_row(totals, shift, smoothing_loss)
    assert loss.numpy() == pytest.approx(2 / temperature, rel=1e-5)
    np.testing.assert_allclose(softmax.embedding_gradient(sums, totals, which), [[2 / temperature, 0]], rtol=1e-5)
    passes.backward(batch._replace(shift=shift), totals, GRADIENT_ALONE)
    np.testing.assert_allclose(local.momentum.values, 0, atol=1e-6)  # nothing across a class that is in line


def test_no_shift_is_needed_from_its_limit_on():
    # A thousand million classes at exp(1 / tau), and one at exp(-1 / tau), which must not be flushed to zero.
    largest = np.exp(1 / SMALLEST_UNSHIFTED_TEMPERATURE)
    assert 1e9 * largest < np.finfo(np.float32).max / 1e3
    assert 1 / largest > 1e3 * np.finfo(np.float32).tiny


@pytest.mark.parametrize("smoothing_loss", SMOOTHING_LOSSES)
def test_no_tensor_is_larger_than_a_tile(smoothing_loss):
    """Every output of every operation, and every reading of class weights, with 64 tiles."""
    batch_rows, tile, size, labels_of_row = 32, 64, 8, 4
    num_classes = 64 * tile + 5
    w = np.random.default_rng(4).normal(size=[num_classes, size]).astype(np.float32)
    columns = np.random.default_rng(5).integers(num_classes, size=[batch_rows, labels_of_row])
    labels = tf.constant([[0.7, 0.1, 0.1, 0.1]] * batch_rows)
    passes = PortablePasses(classes_of(w), Softmax(0.01, smoothing_loss), tile)
    gathered, largest = [], 0

    def watch(op_type, inputs, attributes, outputs, op_name=None, graph=None):
        nonlocal largest
        largest = max(largest, *(int(np.prod(tensor.shape)) for tensor in outputs), 0)
        if op_type == "ResourceGather":
            gathered.append(len(outputs[0]))

    op_callbacks.add_op_callback(watch)
    try:
        x = tf.math.l2_normalize(tf.random.stateless_normal([batch_rows, size], [1, 2]), axis=1)
        batch = Batch(x, select_targets(tf.constant(columns, tf.int32), labels))
        batch = batch._replace(shift=passes.local_maxima(batch))
        sums = passes.forward(batch)
        passes.backward(batch, Totals(sums.exp_sum, sums.target_sum), GRADIENT_ALONE)
    finally:
        op_callbacks.remove_op_callback(watch)
    # Weights once for the maxima and once forward; weights and momentum backward.
    once = [min(tile, num_classes - start) for start in range(0, num_classes, tile)]
    assert gathered == once * 2 + [number for number in once for _ in range(2)]
    assert largest == batch_rows * tile < batch_rows * num_classes


@pytest.mark.parametrize("smoothing_loss", SMOOTHING_LOSSES)
def test_a_weight_without_a_direction_has_cosine_0(smoothing_loss):
    """Class weights of length 0, one just long enough to have a direction, and one of half that length."""
    w = weights()[:5]
    w[1], w[2] = 0.0, 1.001e-6 * reference.normalize(w[2:3])[0]
    w[4] = 0.5e-6 * reference.normalize(w[4:5])[0]
    which = Softmax(0.15, smoothing_loss)
    local = classes_of(w)
    passes = PortablePasses(local, which)
    batch = Batch(tf.constant(embeddings()[:1]), select_targets(tf.constant([[1]]), tf.constant([[1.0]])))
    sums = passes.forward(batch)
    directions = reference.normalize(w[[0, 2, 3, 4]].astype(np.float64)) * [[1.0], [1.0], [1.0], [0.5]]
    cosines = directions @ embeddings()[0]
    np.testing.assert_allclose(sums.exp_sum, [np.sum(np.exp(cosines / 0.15)) + 1], rtol=1e-5)
    assert sums.own_logit.numpy() == [0]
    passes.backward(batch, Totals(sums.exp_sum, sums.target_sum), GRADIENT_ALONE)
    gradient = (1 / sums.exp_sum.numpy() - 1) * embeddings()[0] / 0.15 / 1e-6
    np.testing.assert_allclose(local.momentum.values[1], gradient, rtol=1e-4)
