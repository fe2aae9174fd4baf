"""The compiled kernels, each family that this processor can run, against the dense float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import classifier_sizes, compiled_softmax, softmax, storage
from instcls_tf.classifier import ShardedClassifier
from instcls_tf.kernels import build
from instcls_tf.labels import Targets, label_distribution, select_targets
from tests import reference
from tests.kernels import FAMILIES, skip_unless_usable
from tests.reference import relative_error

RATE = 0.3
# Classes, rows, columns and labels per row: smaller than a tile, a panel and a vector; one more than a panel; several
# tiles, the last one short, with columns that fill no vector; long rows.
SIZES = [(3, 1, 1, 1), (53, 12, 8, 3), (97, 65, 17, 5), (1601, 130, 130, 9), (70, 64, 1030, 2)]
TILE_CLASSES = 61  # odd, and no multiple of any block of the kernels


@pytest.fixture(params=FAMILIES)
def kernels(request, monkeypatch):
    skip_unless_usable(request.param)
    monkeypatch.setattr(compiled_softmax, "KERNELS", request.param)
    monkeypatch.setattr(classifier_sizes, "kernel_tile_classes", lambda *_: TILE_CLASSES)
    return request.param


def make(num_instances: int, size: int, **changes) -> tuple[ShardedClassifier, np.ndarray]:
    random = np.random.default_rng(1)
    weights = random.normal(size=[num_instances, size]) * random.uniform(0.5, 2.0, [num_instances, 1])
    layer = ShardedClassifier(num_instances, size, **changes)
    layer.write(tf.range(num_instances), tf.constant(weights, tf.float32))
    return layer, weights.astype(np.float32)


def batch(weights: np.ndarray, rows: int, hard: int):
    random = np.random.default_rng(2)
    ids = random.integers(len(weights), size=rows).astype(np.int32)
    ids[-1] = len(weights) - 1
    noise = random.normal(size=[rows, weights.shape[1]]) * np.linspace(0.2, 3, rows)[:, np.newaxis]
    others = np.stack([random.permutation(np.delete(np.arange(len(weights)), own))[:hard] for own in ids])
    return (weights[ids] + noise).astype(np.float32), ids, others.astype(np.int32)


@pytest.mark.parametrize("smoothing_loss", softmax.SMOOTHING_LOSSES)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_dense_reference(kernels, sizes, smoothing_loss):
    num_instances, rows, size, hard = sizes
    layer, weights = make(num_instances, size, smoothing_loss=smoothing_loss)
    dense = reference.DenseClassifier(weights, temperature=0.15, smoothing=0.2, smoothing_loss=smoothing_loss)
    embeddings, ids, others = batch(weights, rows, hard)
    for _ in range(2):
        x = tf.constant(embeddings)
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = layer(x, tf.constant(ids), tf.constant(others), learning_rate=RATE)
        loss, gradient, top1 = dense.step(embeddings, ids, others, RATE)
        assert relative_error(output.loss, loss) < 1e-5
        assert output.instance_top1.numpy() == pytest.approx(top1)
        if size > 1:  # a single column has two directions only, and no gradient
            assert relative_error(tape.gradient(output.loss, x), gradient) < 1e-5
    assert relative_error(layer.local_rows, dense.weights) < 1e-5
    assert relative_error(layer.local_momentum, dense.buffer) < 2e-5


def round_to_bfloat16(values) -> np.ndarray:
    return tf.cast(tf.cast(tf.constant(values), tf.bfloat16), tf.float32).numpy()


@pytest.mark.parametrize("sizes", SIZES[1:])
def test_bfloat16_products_are_sums_in_float32(kernels, sizes):
    """Factors rounded to the nearest bfloat16 (one midway may go to the other side), everything else in float32."""
    num_instances, rows, size, hard = sizes
    layer, weights = make(num_instances, size)
    embeddings, ids, others = batch(weights, rows, hard)
    x = tf.math.l2_normalize(tf.constant(embeddings), axis=1)
    scaled, directions = (round_to_bfloat16(part) for part in (x / 0.15, tf.math.l2_normalize(weights, axis=1)))
    logits = scaled.astype(np.float64) @ directions.T.astype(np.float64)
    classes, labels = label_distribution(tf.constant(ids), tf.constant(others), 0.2)
    targets = select_targets(classes, labels)
    sums = compiled_softmax.forward_pass(layer.local_rows, None, x, targets, 0.15, "marginal", tf.bfloat16)
    assert relative_error(sums.exp_sum, np.exp(logits).sum(axis=1)) < 1e-5
    assert relative_error(sums.own_logit, logits[np.arange(rows), ids]) < 1e-5
    assert relative_error(sums.exp_weights, round_to_bfloat16(np.exp(logits)).astype(np.float64) @ directions) < 2e-4

    momentum = tf.Variable(tf.zeros([num_instances, size]))
    compiled_softmax.backward_pass(
        layer.local_rows, momentum, None, x, targets, sums.exp_sum, sums.target_sum, 0.15, "marginal", tf.bfloat16,
        learning_rate=tf.constant(0.0), momentum_factor=0.0, weight_decay=0.0, first_class=0, seed=tf.constant(0),
    )  # fmt: skip
    labels = reference.labels(ids, others, 0.2, num_instances) * np.exp(logits)
    labels /= labels.sum(axis=1, keepdims=True)
    expected = round_to_bfloat16(x / (0.15 * rows) / sums.exp_sum[:, tf.newaxis])
    gradient = round_to_bfloat16(np.exp(logits)).T.astype(np.float64) @ expected - labels.T @ (x / (0.15 * rows))
    assert relative_error(momentum, reference.through_norm(gradient, weights)) < 2e-4


def test_exponentials_are_exact_to_float32(kernels):
    """Two columns make any cosine: one class at each of many angles, and its exponential by itself."""
    angles = np.linspace(0, np.pi, 2001)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    temperature = softmax.SMALLEST_UNSHIFTED_TEMPERATURE
    for angle in (0.0, 1.0):
        x = tf.constant([[np.cos(angle), np.sin(angle)]], tf.float32)
        for begin in range(0, len(rows), 500):
            variable = tf.Variable(rows[begin : begin + 1])
            targets = select_targets(tf.constant([[-1]]), tf.constant([[1.0]]))
            sums = compiled_softmax.forward_pass(variable, None, x, targets, temperature, "marginal")
            logit = np.float32(rows[begin].astype(np.float64) @ x[0].numpy().astype(np.float64) / temperature)
            assert sums.max_negative[0].numpy() == pytest.approx(logit, rel=1e-6, abs=1e-5)
            assert sums.exp_sum[0].numpy() == pytest.approx(np.exp(np.float64(sums.max_negative[0])), rel=3e-7)


def test_partial_sums_are_those_of_the_portable_passes(kernels):
    """Streamed classes in any number, labels on some of them, no class of a row's own among them."""
    layer, weights = make(300, 24)
    embeddings = tf.math.l2_normalize(tf.constant(batch(weights, 70, 2)[0]), axis=1)
    streamed = tf.constant(np.flatnonzero(np.arange(300) % 3))
    columns = np.random.default_rng(3).integers(-1, 200, size=[70, 5])
    targets = select_targets(tf.constant(columns, tf.int32), tf.fill([70, 5], 0.2))
    for loss in softmax.SMOOTHING_LOSSES:
        compiled = compiled_softmax.forward_pass(
            layer.local_rows, tf.cast(streamed, tf.int32), embeddings, targets, 0.15, loss
        )
        read = lambda begin, end: tf.gather(layer.local_rows, streamed[begin:end])  # noqa: E731
        portable = softmax.forward_pass(read, tf.constant(200), embeddings, targets, None, 0.15, loss)
        for name, expected in portable._asdict().items():
            np.testing.assert_allclose(getattr(compiled, name), expected, rtol=2e-5, atol=2e-4, err_msg=name)


def test_storage_rounds_as_the_portable_passes_do(kernels, monkeypatch):
    """The same random bits: what is stored differs by one place at most, where float32 sums differ, and rarely."""
    stored = []
    for available in (True, False):
        monkeypatch.setattr(compiled_softmax, "available", lambda available=available: available)
        layer, weights = make(97, 40, weights_dtype="bfloat16", momentum_dtype="bfloat16", seed=7)
        embeddings, ids, others = batch(weights, 20, 3)
        for step in range(3):
            layer(tf.constant(embeddings), tf.constant(ids), tf.constant(others), learning_rate=RATE, step=step)
        stored.append([tf.cast(part, tf.float32).numpy() for part in (layer.local_rows, layer.local_momentum)])
    for compiled, portable in zip(*stored):
        assert np.mean(compiled != portable) < 0.01
        np.testing.assert_allclose(compiled, portable, rtol=2.0**-6, atol=1e-6)


def test_what_was_read_before_stays(kernels):
    """The kernels write in place, but never into a tensor that somebody still holds."""
    variable, momentum = tf.Variable(tf.ones([4, 8])), tf.Variable(tf.zeros([4, 8]))
    before = variable.read_value(), momentum.read_value()
    x = tf.math.l2_normalize(tf.random.stateless_normal([3, 8], [1, 2]), axis=1)
    targets = select_targets(tf.constant([[0], [1], [2]]), tf.ones([3, 1]))
    compiled_softmax.backward_pass(
        variable, momentum, None, x, targets, tf.fill([3], 4.0), tf.fill([3], 1.0), 0.15, "marginal",
        learning_rate=tf.constant(0.1), momentum_factor=0.9, weight_decay=0.0, first_class=0, seed=tf.constant(0),
    )  # fmt: skip
    assert np.abs(variable.numpy() - 1).max() > 1e-3 and np.abs(momentum.numpy()).max() > 1e-2
    np.testing.assert_array_equal(before[0], np.ones([4, 8]))
    np.testing.assert_array_equal(before[1], np.zeros([4, 8]))


def test_sums_over_many_classes_keep_their_digits(kernels):
    """The same class a hundred thousand times: sums of equal terms are where a long chain of float32 loses most."""
    rows = tf.Variable([[0.6, 0.8], [0.3, -1.0]])
    many = tf.zeros([100_000], tf.int32)
    x, nothing = tf.constant([[0.6, 0.8], [1.0, 0.0]]), select_targets(tf.constant([[-1], [-1]]), tf.ones([2, 1]))
    sums = compiled_softmax.forward_pass(rows, many, x, nothing, 0.15, "marginal")
    mean = sums.exp_weights / sums.exp_sum[:, tf.newaxis]
    np.testing.assert_allclose(mean, [[0.6, 0.8], [0.6, 0.8]], rtol=3e-5)


def backward(rows, momentum, streamed=None, temperature=0.15, learning_rate=0.1, seed=0):
    x, targets = tf.ones([1, rows.shape[1]]), select_targets(tf.constant([[0]]), tf.ones([1, 1]))
    compiled_softmax.backward_pass(
        rows, momentum, streamed, x, targets, tf.ones([1]), tf.ones([1]), temperature, "marginal",
        learning_rate=tf.constant(learning_rate), momentum_factor=0.9, weight_decay=0.0, first_class=0, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.0249}, "a temperature below 0.025 needs a shift"),
        ({"learning_rate": [0.1, 0.2]}, "learning rate and seed must be scalars"),
        ({"seed": tf.zeros([0], tf.int32)}, "learning rate and seed must be scalars"),
        ({"streamed": tf.constant([0, 2, 2])}, "streamed classes that are moved must ascend"),
        ({"streamed": tf.zeros([4, 0], tf.int32)}, "streamed classes must be a vector"),
        ({"momentum": tf.Variable(tf.zeros([5, 3]))}, "must have one shape"),
        ({"momentum": tf.Variable(tf.zeros([5, 2], tf.float64))}, "must be float32 or bfloat16"),
        ({"momentum": None}, "must be two variables"),
        ({"rows": tf.Variable(tf.zeros([5, 0])), "momentum": tf.Variable(tf.zeros([5, 0]))}, "at least one column"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, words):
    rows = tf.Variable(tf.ones([5, 2]))
    arguments = {"rows": rows, "momentum": tf.Variable(tf.zeros([5, 2])), **changes}
    if arguments["momentum"] is None:
        arguments["momentum"] = rows
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        backward(**arguments)
    np.testing.assert_array_equal(rows, np.ones([5, 2]))


@pytest.mark.parametrize(
    ("row", "column", "streamed", "words"),
    [
        ([0, 3], [0, 1], None, "targets must be sorted"),
        ([0, 1], [1, 0], None, "targets must be sorted"),
        ([0, 1], [0, 5], None, "targets must be sorted"),
        ([0, 1], [0, 2], [0, 4], "targets must be sorted"),
        ([0, 1], [0, 1], [0, 5], "streamed class 5 is not one of 5"),
        ([0], [0, 1], None, "equally long"),
    ],
)
def test_what_lies_outside_is_refused(kernels, row, column, streamed, words):
    targets = Targets(*map(tf.constant, (row, column, [1.0, 1.0], [True, True])))
    streamed = None if streamed is None else tf.constant(streamed)
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        compiled_softmax.forward_pass(
            tf.Variable(tf.ones([5, 2])), streamed, tf.ones([3, 2]), targets, 0.15, "marginal"
        )


def test_random_bits_are_spread_evenly():
    variable = tf.Variable(tf.zeros([1, 1], tf.bfloat16))
    value = 1.0 + 2.0**-7 * 0.3  # three tenths of the way to the next number
    ids = tf.range(4000)
    for seed, part in ((0, storage.WEIGHTS), (0, storage.MOMENTUM), (1, storage.WEIGHTS)):
        rounded = storage.round_for(variable, tf.fill([4000, 25], value), ids, tf.constant(seed), part)
        up = tf.cast(rounded > 1, tf.float32).numpy()
        assert set(np.unique(tf.cast(rounded, tf.float32))) == {1.0, 1.0 + 2.0**-7}
        assert up.mean() == pytest.approx(0.3, abs=0.006)  # four standard deviations of 100,000 draws
        assert np.abs(up.mean(axis=0) - 0.3).max() < 0.04 and np.abs(up.mean(axis=1) - 0.3).max() < 0.5
    first, second = (
        storage.round_for(variable, tf.fill([4000, 25], value), ids, tf.constant(seed), 0) for seed in (5, 6)
    )
    assert np.mean(tf.cast(first == second, tf.float32)) == pytest.approx(0.58, abs=0.01)  # 0.3² + 0.7²


def test_building_again_does_nothing(capsys):
    written = build.library_path().stat().st_mtime_ns
    build.build()
    assert build.library_path().stat().st_mtime_ns == written
    assert capsys.readouterr().out == ""


def test_a_compiler_that_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "library_path", lambda: tmp_path / "lib" / "kernels.so")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="no-such-compiler: No such file or directory"):
        build.build()
    assert list((tmp_path / "lib").iterdir()) == []
