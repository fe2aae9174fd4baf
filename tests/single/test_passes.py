"""The compiled kernels, each family that this processor can run, against the dense float64 reference."""

from __future__ import annotations

import functools
import itertools
import sys

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier import stochastic_rounding
from instcls_tf.classifier.kernels import build, streamed_softmax
from instcls_tf.classifier.kernels.passes import CompiledPasses
from instcls_tf.classifier.labels import ListsOfRows, Targets, label_distribution, select_targets
from instcls_tf.classifier.local_classes import LocalClasses
from instcls_tf.classifier.portable_passes import PortablePasses
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.classifier.shift import SMALLEST_UNSHIFTED_TEMPERATURE
from instcls_tf.classifier.softmax import Batch, Shift, Softmax, Totals
from instcls_tf.classifier.stochastic_rounding import Draw
from instcls_tf.classifier.table import Table
from instcls_tf.compiler import Library
from instcls_tf.config import SMOOTHING_LOSSES
from tests import reference
from tests.kernels import FAMILIES, classes_of, passes_of_family, step_of
from tests.reference import relative_error

RATE = 0.3
# Classes, rows, columns and labels per row: smaller than a tile, a panel and a vector; one more than a panel; several
# tiles, the last one short, with columns that fill no vector; long rows.
SIZES = [(3, 1, 1, 1), (53, 12, 8, 3), (97, 65, 17, 5), (1601, 130, 130, 9), (70, 64, 1030, 2)]
# The lower one needs a shift; long rows near their classes leave no gradient then.
SIZES_AND_TEMPERATURES = [*((sizes, 0.15) for sizes in SIZES), *((sizes, 0.02) for sizes in SIZES[:4])]


@pytest.fixture(params=FAMILIES)
def compiled(request):
    """Makes the passes of one family of processors, with small tiles."""
    return passes_of_family(request.param)


def make(num_instances: int, size: int, **changes) -> tuple[ShardedClassifier, np.ndarray]:
    random = np.random.default_rng(1)
    weights = random.normal(size=[num_instances, size]) * random.uniform(0.5, 2.0, [num_instances, 1])
    layer = ShardedClassifier(num_instances, size, **changes)
    layer.write(tf.range(num_instances), tf.constant(weights, tf.float32))
    return layer, weights.astype(np.float32)


def batch(weights: np.ndarray, rows: int, num_hard_negatives: int):
    random = np.random.default_rng(2)
    ids = random.integers(len(weights), size=rows).astype(np.int32)
    ids[-1] = len(weights) - 1
    noise = random.normal(size=[rows, weights.shape[1]]) * np.linspace(0.2, 3, rows)[:, np.newaxis]
    others = np.stack([random.permutation(np.delete(np.arange(len(weights)), own))[:num_hard_negatives] for own in ids])
    return (weights[ids] + noise).astype(np.float32), ids, others.astype(np.int32)


@pytest.mark.parametrize("smoothing_loss", SMOOTHING_LOSSES)
@pytest.mark.parametrize(("sizes", "temperature"), SIZES_AND_TEMPERATURES)
def test_equals_dense_reference(compiled, sizes, smoothing_loss, temperature):
    num_instances, rows, size, num_hard_negatives = sizes
    settings = {"temperature": temperature, "smoothing_loss": smoothing_loss}
    tolerance = 1e-5 if temperature > 0.1 else 1e-4  # of logits up to 50
    layer, weights = make(num_instances, size, **settings, make_passes=compiled)
    dense = reference.DenseClassifier(weights, smoothing=0.2, **settings)
    embeddings, ids, others = batch(weights, rows, num_hard_negatives)
    for _ in range(2):
        x = tf.constant(embeddings)
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = layer(x, tf.constant(ids), ListsOfRows(others), learning_rate=RATE)
        loss, gradient, top1 = dense.step(embeddings, ids, others, RATE)
        assert relative_error(output.loss, loss) < tolerance
        assert output.instance_top1.numpy() == pytest.approx(top1)
        if size > 1:  # a single column has two directions only, and no gradient
            assert relative_error(tape.gradient(output.loss, x), gradient) < tolerance
    assert relative_error(layer.local_weights, dense.weights) < tolerance
    assert relative_error(layer.local_momentum, dense.buffer) < 2 * tolerance


def round_to_bfloat16(values) -> np.ndarray:
    return tf.cast(tf.cast(tf.constant(values), tf.bfloat16), tf.float32).numpy()


@pytest.mark.parametrize(("sizes", "tau"), [(sizes, tau) for sizes, tau in SIZES_AND_TEMPERATURES if sizes != SIZES[0]])
def test_bfloat16_products_are_sums_in_float32(compiled, sizes, tau):
    """Factors rounded to the nearest bfloat16 (one midway may go to the other side), everything else in float32."""
    num_instances, rows, size, num_hard_negatives = sizes
    _, weights = make(num_instances, size)
    embeddings, ids, others = batch(weights, rows, num_hard_negatives)
    x = tf.math.l2_normalize(tf.constant(embeddings), axis=1)
    scaled, directions = (round_to_bfloat16(part) for part in (x / tau, tf.math.l2_normalize(weights, axis=1)))
    logits = scaled.astype(np.float64) @ directions.T.astype(np.float64)
    classes, labels = label_distribution(tf.constant(ids), tf.constant(others), 0.2)
    whole = Batch(x, select_targets(classes, labels))
    local = classes_of(weights)
    both = compiled(local, Softmax(tau, "marginal", tf.bfloat16))
    tolerance = 1e-5 if tau > 0.1 else 1e-4  # of logits up to 50
    whole = whole._replace(shift=both.local_maxima(whole))
    shifted = of_labels = logits
    if whole.shift is not None:
        assert relative_error(whole.shift.logits, logits.max(axis=1)) < 1e-5
        shifted, of_labels = (logits - part.numpy()[:, np.newaxis] for part in whole.shift)
    sums = both.forward(whole)
    assert relative_error(sums.exp_sum, np.exp(shifted).sum(axis=1)) < tolerance
    assert relative_error(sums.own_logit, logits[np.arange(rows), ids]) < 1e-5
    assert relative_error(sums.exp_weights, round_to_bfloat16(np.exp(shifted)).astype(np.float64) @ directions) < 2e-4

    both.backward(whole, Totals(sums.exp_sum, sums.target_sum), step_of())
    labels = reference.labels(ids, others, 0.2, num_instances) * np.exp(of_labels)
    labels /= labels.sum(axis=1, keepdims=True)
    expected = round_to_bfloat16(x / (tau * rows) / sums.exp_sum[:, tf.newaxis])
    gradient = round_to_bfloat16(np.exp(shifted)).T.astype(np.float64) @ expected - labels.T @ (x / (tau * rows))
    assert relative_error(local.momentum.values, reference.through_norm(gradient, weights)) < 2e-4


def test_exponentials_are_exact_to_float32(compiled):
    """Two columns make any cosine: one class at each of many angles, and its exponential by itself."""
    angles = np.linspace(0, np.pi, 2001)
    weights = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    temperature = SMALLEST_UNSHIFTED_TEMPERATURE
    for angle in (0.0, 1.0):
        x = tf.constant([[np.cos(angle), np.sin(angle)]], tf.float32)
        for begin in range(0, len(weights), 500):
            of_one = compiled(classes_of(weights[begin : begin + 1]), Softmax(temperature, "marginal"))
            sums = of_one.forward(Batch(x, select_targets(tf.constant([[-1]]), tf.constant([[1.0]]))))
            logit = np.float32(weights[begin].astype(np.float64) @ x[0].numpy().astype(np.float64) / temperature)
            assert sums.max_negative[0].numpy() == pytest.approx(logit, rel=1e-6, abs=1e-5)
            assert sums.exp_sum[0].numpy() == pytest.approx(np.exp(np.float64(sums.max_negative[0])), rel=3e-7)


def test_partial_sums_are_those_of_the_portable_passes(compiled):
    """Streamed classes in any number, labels on some of them, no class of a row's own among them."""
    _, weights = make(300, 24)
    embeddings = tf.math.l2_normalize(tf.constant(batch(weights, 70, 2)[0]), axis=1)
    streamed = tf.constant(np.flatnonzero(np.arange(300) % 3), tf.int32)
    columns = np.random.default_rng(3).integers(-1, 200, size=[70, 5])
    columns[3] = -1
    part = Batch(embeddings, select_targets(tf.constant(columns, tf.int32), tf.fill([70, 5], 0.2)), streamed)
    portable = functools.partial(PortablePasses, tile_classes=17)
    for loss, temperature in itertools.product(SMOOTHING_LOSSES, (0.15, 0.02)):
        both = [make(classes_of(weights), Softmax(temperature, loss)) for make in (compiled, portable)]
        shift, expected_shift = (passes.local_maxima(part) for passes in both)
        assert (shift is None) == (expected_shift is None) == (temperature > 0.1)
        if shift is not None:
            assert np.isneginf(shift.targets[3]) and expected_shift.targets[3] < -1e38  # a row without a label here
            for values, expected in zip(shift, expected_shift):
                np.testing.assert_allclose(np.delete(values, 3), np.delete(expected, 3), rtol=1e-5, atol=1e-4)
        # Completed by other workers, which have a label of that row.
        whole = shift and Shift(shift.logits, tf.maximum(shift.targets, -1 / temperature))
        sums, expected = (passes.forward(part._replace(shift=whole)) for passes in both)
        for name, values in expected._asdict().items():
            np.testing.assert_allclose(getattr(sums, name), values, rtol=2e-5, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_storage_rounds_as_the_portable_passes_do(compiled, dtype):
    """The same random bits: what is stored differs by one place at most, where float32 sums differ, and rarely."""
    stored = []
    for make_passes in (compiled, PortablePasses):
        both = dict.fromkeys(("weights_dtype", "momentum_dtype"), dtype)
        layer, weights = make(97, 40, **both, seed=7, make_passes=make_passes)
        embeddings, ids, others = batch(weights, 20, 3)
        for step in range(3):
            layer(
                tf.constant(embeddings),
                tf.constant(ids),
                ListsOfRows(others),
                learning_rate=RATE,
                step=step,
            )
        stored.append((layer.classes.weights, layer.classes.momentum))
    for table, portable in zip(*stored):
        values, expected = (kept.read(tf.range(97)).numpy() for kept in (table, portable))
        assert np.mean(values != expected) < 0.01
        place = 2.0**-6 * np.abs(expected)
        if dtype == "int8":
            assert np.mean(table.scales != portable.scales) < 0.05
            place = np.maximum(table.scales, portable.scales)[:, np.newaxis]
        assert np.all(np.abs(values - expected) < 1.001 * place + 1e-6)


def test_what_was_read_before_stays(compiled):
    """The kernels write in place, but never into a tensor that somebody still holds."""
    local = classes_of(tf.ones([4, 8]))
    before = local.weights.values.read_value(), local.momentum.values.read_value()
    x = tf.math.l2_normalize(tf.random.stateless_normal([3, 8], [1, 2]), axis=1)
    batch = Batch(x, select_targets(tf.constant([[0], [1], [2]]), tf.ones([3, 1])))
    totals = Totals(tf.fill([3], 4.0), tf.fill([3], 1.0))
    compiled(local, Softmax(0.15, "marginal")).backward(batch, totals, step_of(0.1, 0.9))
    assert np.abs(local.weights.values.numpy() - 1).max() > 1e-3 and np.abs(local.momentum.values.numpy()).max() > 1e-2
    np.testing.assert_array_equal(before[0], np.ones([4, 8]))
    np.testing.assert_array_equal(before[1], np.zeros([4, 8]))


def test_sums_over_many_classes_keep_their_digits(compiled):
    """The same class a hundred thousand times: sums of equal terms are where a long chain of float32 loses most."""
    many = tf.zeros([100_000], tf.int32)
    x, nothing = tf.constant([[0.6, 0.8], [1.0, 0.0]]), select_targets(tf.constant([[-1], [-1]]), tf.ones([2, 1]))
    local = classes_of([[0.6, 0.8], [0.3, -1.0]])
    sums = compiled(local, Softmax(0.15, "marginal")).forward(Batch(x, nothing, many))
    mean = sums.exp_weights / sums.exp_sum[:, tf.newaxis]
    np.testing.assert_allclose(mean, [[0.6, 0.8], [0.6, 0.8]], rtol=3e-5)


@pytest.mark.parametrize("smoothing_loss", SMOOTHING_LOSSES)
def test_weights_without_a_direction_as_in_the_portable_passes(compiled, smoothing_loss):
    """Class weights of length 0, just long enough to have a direction, and of half that: all sums and moved weights."""
    _, weights = make(9, 6)
    weights[1], weights[2] = 0.0, 1.001e-6 * reference.normalize(weights[2:3])[0]
    weights[5] = 0.5e-6 * reference.normalize(weights[5:6])[0]
    x = tf.math.l2_normalize(tf.random.stateless_normal([3, 6], [1, 2]), axis=1)
    batch = Batch(x, select_targets(tf.constant([[1], [2], [5]]), tf.ones([3, 1])))
    results = []
    for make_passes in (compiled, PortablePasses):
        local = classes_of(weights)
        both = make_passes(local, Softmax(0.15, smoothing_loss))
        sums = both.forward(batch)
        both.backward(batch, Totals(sums.exp_sum, sums.target_sum), step_of(0.1))
        results.append([*sums, local.weights.values, local.momentum.values])
    assert results[0][2].numpy()[0] == 0  # own_logit
    for values, expected in zip(*results):
        assert np.isfinite(values).all()
        assert relative_error(values, expected) < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.0249}, "a temperature below 0.025 needs a shift"),
        ({"learning_rate": [0.1, 0.2]}, "learning rate and seed must be scalars"),
        ({"seed": tf.zeros([0], tf.int32)}, "learning rate and seed must be scalars"),
        ({"streamed": tf.constant([0, 2, 2])}, "streamed classes that are moved must ascend"),
        ({"streamed": tf.zeros([4, 0], tf.int32)}, "streamed classes must be a vector"),
        ({"momentum": tf.Variable(tf.zeros([5, 3]))}, "must have one shape"),
        ({"momentum": tf.Variable(tf.zeros([5, 2], tf.float64))}, "must be float32, bfloat16 or int8"),
        ({"momentum": tf.Variable(tf.zeros([5, 2], tf.int8))}, "must have one scale each, in float32"),
        ({"momentum": None}, "must be two variables"),
        ({"weights": tf.Variable(tf.zeros([5, 0])), "momentum": tf.Variable(tf.zeros([5, 0]))}, "at least one column"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, words):
    weights = tf.Variable(tf.ones([5, 2]))
    settings = {"weights": weights, "momentum": tf.Variable(tf.zeros([5, 2])), "streamed": None, "temperature": 0.15}
    settings.update({"learning_rate": 0.1, "seed": 0, **changes})
    momentum = weights if settings["momentum"] is None else settings["momentum"]
    local = LocalClasses(Table(settings["weights"]), Table(momentum), 0)
    x, targets = tf.ones([1, local.embedding_size]), select_targets(tf.constant([[0]]), tf.ones([1, 1]))
    both = CompiledPasses(local, Softmax(settings["temperature"], "marginal"))
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        both.backward(
            Batch(x, targets, settings["streamed"]),
            Totals(tf.ones([1]), tf.ones([1])),
            step_of(settings["learning_rate"], 0.9, settings["seed"]),
        )
    np.testing.assert_array_equal(weights, np.ones([5, 2]))


@pytest.mark.parametrize("scales", [tf.zeros([4]), tf.zeros([5], tf.bfloat16)], ids=["too_few", "bfloat16"])
def test_scales_that_do_not_fit_are_refused(compiled, scales):
    numbers = tf.Variable(tf.ones([5, 2], tf.int8))
    local = LocalClasses(Table(numbers, tf.Variable(scales)), Table(tf.Variable(tf.zeros([5, 2]))), 0)
    batch = Batch(tf.ones([1, 2]), select_targets(tf.constant([[0]]), tf.ones([1, 1])))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have one scale each, in float32"):
        compiled(local, Softmax(0.15, "marginal")).forward(batch)


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
def test_what_lies_outside_is_refused(compiled, row, column, streamed, words):
    targets = Targets(*map(tf.constant, (row, column, [1.0, 1.0], [True, True])))
    streamed = None if streamed is None else tf.constant(streamed)
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        compiled(classes_of(tf.ones([5, 2])), Softmax(0.15, "marginal")).forward(
            Batch(tf.ones([3, 2]), targets, streamed)
        )


def test_random_bits_are_spread_evenly():
    value = 1.0 + 2.0**-7 * 0.3  # three tenths of the way to the next number
    ids = tf.range(4000)
    for seed, part in (
        (0, stochastic_rounding.WEIGHTS),
        (0, stochastic_rounding.MOMENTUM),
        (1, stochastic_rounding.WEIGHTS),
    ):
        rounded = stochastic_rounding.to_bfloat16(tf.fill([4000, 25], value), Draw(ids, tf.constant(seed), part))
        up = tf.cast(rounded > 1, tf.float32).numpy()
        assert set(np.unique(tf.cast(rounded, tf.float32))) == {1.0, 1.0 + 2.0**-7}
        assert up.mean() == pytest.approx(0.3, abs=0.006)  # four standard deviations of 100,000 draws
        assert np.abs(up.mean(axis=0) - 0.3).max() < 0.04 and np.abs(up.mean(axis=1) - 0.3).max() < 0.5
    first, second = (
        stochastic_rounding.to_bfloat16(tf.fill([4000, 25], value), Draw(ids, tf.constant(seed), 0)) for seed in (5, 6)
    )
    assert np.mean(tf.cast(first == second, tf.float32)) == pytest.approx(0.58, abs=0.01)  # 0.3² + 0.7²


def test_building_again_does_nothing(capsys):
    written = streamed_softmax.LIBRARY.path.stat().st_mtime_ns
    build.build()
    assert streamed_softmax.LIBRARY.path.stat().st_mtime_ns == written
    assert capsys.readouterr().out == ""


def test_a_compiler_that_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="no-such-compiler: No such file or directory"):
        Library(streamed_softmax.LIBRARY.folder, streamed_softmax.LIBRARY.name).build()
    assert list((tmp_path / "lib" / "instcls_tf").iterdir()) == []
