"""The classifier as an ordinary layer of one worker, without a launcher, against the dense float64 reference."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.choice import passes_of
from instcls_tf.classifier.hard_negatives import HardNegatives
from instcls_tf.classifier.kernels.passes import CompiledPasses
from instcls_tf.classifier.labels import ListsOfRows
from instcls_tf.classifier.local_classes import LocalClasses
from instcls_tf.classifier.portable_passes import PortablePasses
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.classifier.softmax import Softmax
from instcls_tf.classifier.table import Table
from instcls_tf.config import CLASS_PASSES, SMOOTHING_LOSSES, PretrainConfig
from instcls_tf.distributed import collectives
from instcls_tf.pretraining.make_method import make_method
from tests.classifiers import (
    NUM_HARD_NEGATIVES,
    NUM_INSTANCES,
    PASSES,
    RATE,
    SIZE,
    batch,
    classifier,
    make_dense,
    weights,
)
from tests.reference import relative_error

# What the reference calls its arrays.
DENSE_NAMES = {"weights": "weights", "momentum": "buffer"}


@pytest.fixture(params=PASSES)
def make_passes(request):
    """The compiled kernels, and TensorFlow's own operations, with several tiles."""
    return functools.partial(request.param, tile_classes=20)


@pytest.fixture
def make_classifier(make_passes):
    """Makes classifiers that step by either."""
    return functools.partial(classifier, make_passes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.01},
        {"smoothing_loss": "cross_entropy", "temperature": 0.01},
        {"momentum": 0.5, "weight_decay": 0.1, "smoothing": 0.0},
    ],
    ids=["defaults", "cold", "cold_cross_entropy", "other_sgd"],
)
def test_training_equals_dense_reference(make_classifier, changes):
    """A few steps with a changing learning rate; the caller scales the loss by 2, which the rows must not notice."""
    layer, dense = make_classifier(**changes), make_dense(**changes)
    tolerance = 1e-5 if layer.temperature > 0.1 else 2e-4
    for step in range(4):
        embeddings, ids, hard_negatives = batch(step)
        rate = RATE / (step + 1)
        with tf.GradientTape() as tape:
            x = tf.constant(embeddings)
            tape.watch(x)
            output = layer(x, tf.constant(ids), ListsOfRows(hard_negatives), learning_rate=rate, step=step)
            doubled = 2.0 * output.loss
        loss, gradient, top1 = dense.step(embeddings, ids, hard_negatives if layer.smoothing else None, rate)
        assert relative_error(output.loss, loss) < tolerance
        assert relative_error(tape.gradient(doubled, x), 2.0 * gradient) < tolerance
        assert output.instance_top1.numpy() == pytest.approx(top1)
        assert 0 < top1 < 1
    assert relative_error(layer.local_weights, dense.weights) < tolerance
    assert relative_error(layer.local_momentum, dense.buffer) < tolerance


def test_one_trace_for_all_learning_rates_and_steps(make_classifier):
    layer = make_classifier(smoothing=0.0)
    embeddings, ids, _ = batch()
    for step, rate in enumerate((0.1, 0.2, 0, tf.constant(0.4))):
        layer(tf.constant(embeddings), tf.constant(ids), learning_rate=rate, step=step)
    assert layer._forward.experimental_get_tracing_count() == layer._backward.experimental_get_tracing_count() == 1


def test_without_a_learning_rate_the_rows_stay(make_classifier):
    layer = make_classifier()
    embeddings, ids, hard_negatives = batch()
    output = layer(tf.constant(embeddings), tf.constant(ids), ListsOfRows(hard_negatives))
    loss, *_ = make_dense().step(embeddings, ids, hard_negatives, 0.0)
    assert relative_error(output.loss, loss) < 1e-5
    np.testing.assert_array_equal(layer.local_weights, weights())
    np.testing.assert_array_equal(layer.local_momentum, np.zeros_like(weights()))


def test_learning_rate_factor_multiplies_the_rate(make_classifier):
    embeddings, ids, hard_negatives = batch()
    rows = []
    for factor, rate in ((4.0, 0.1), (1.0, 0.4)):
        layer = make_classifier(learning_rate_factor=factor)
        layer(tf.constant(embeddings), tf.constant(ids), ListsOfRows(hard_negatives), learning_rate=rate)
        rows.append(layer.local_weights.numpy())
    np.testing.assert_allclose(*rows, rtol=1e-6)
    assert relative_error(rows[0], weights()) > 1e-3


def test_momentum_does_not_wait_for_the_learning_rate(make_classifier):
    """A step at rate 0 leaves the rows, but not the momentum: the rate multiplies when the momentum is applied."""
    layer, dense = make_classifier(), make_dense()
    embeddings, ids, hard_negatives = batch()
    for rate in (0.0, RATE):
        layer(tf.constant(embeddings), tf.constant(ids), ListsOfRows(hard_negatives), learning_rate=rate)
        dense.step(embeddings, ids, hard_negatives, rate)
    assert relative_error(layer.local_weights, dense.weights) < 1e-5


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_embeddings(make_classifier, dtype):
    """The sums stay in float32: only the rounding of the input and of its gradient is seen."""
    embeddings, ids, hard_negatives = batch()
    x = tf.cast(embeddings, dtype)
    layer = make_classifier()
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = layer(x, tf.constant(ids), ListsOfRows(hard_negatives))
    gradient = tape.gradient(output.loss, x)
    rounded = tf.cast(x, tf.float32).numpy()
    loss, expected, _ = make_dense().step(rounded, ids, hard_negatives, 0.0)
    assert output.loss.dtype == output.instance_top1.dtype == tf.float32
    assert relative_error(output.loss, loss) < 1e-5
    assert gradient.dtype == dtype
    assert relative_error(tf.cast(gradient, tf.float32), expected) < (1e-3 if dtype == tf.float16 else 1e-2)


def test_layer_is_float32_under_mixed_precision(make_classifier):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        layer = make_classifier()
        embeddings, ids, hard_negatives = batch()
        output = layer(tf.constant(embeddings), tf.constant(ids), ListsOfRows(hard_negatives))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert layer.local_weights.dtype == layer.local_momentum.dtype == tf.float32
    loss, *_ = make_dense().step(embeddings, ids, hard_negatives, 0.0)
    assert relative_error(output.loss, loss) < 1e-5


@pytest.mark.parametrize("smoothing_loss", SMOOTHING_LOSSES)
def test_embeddings_that_are_not_finite_raise_before_rows_move(make_classifier, smoothing_loss):
    layer = make_classifier(smoothing_loss=smoothing_loss)
    embeddings, ids, hard_negatives = batch()
    for value in (np.nan, np.inf):
        embeddings[3, 2] = value
        with pytest.raises(tf.errors.InvalidArgumentError, match="the loss of the global batch"):
            layer(tf.constant(embeddings), tf.constant(ids), ListsOfRows(hard_negatives), learning_rate=RATE)
        np.testing.assert_array_equal(layer.local_weights, weights())
        np.testing.assert_array_equal(layer.local_momentum, np.zeros_like(weights()))


def test_weights_that_are_replaced_begin_without_momentum(make_classifier):
    layer = make_classifier(smoothing=0.0)
    embeddings, ids, _ = batch()
    layer(tf.constant(embeddings), tf.constant(ids), learning_rate=RATE)
    before = layer.local_momentum.numpy()
    assert np.all(np.any(before, axis=1))
    layer.write(tf.constant([1, 4]), tf.ones([2, SIZE]))
    kept = np.delete(np.arange(NUM_INSTANCES), [1, 4])
    assert not np.any(layer.local_momentum.numpy()[[1, 4]])
    np.testing.assert_array_equal(layer.local_momentum.numpy()[kept], before[kept])


def test_ties_do_not_count_as_recognised(make_classifier):
    layer = make_classifier(smoothing=0.0)
    layer.write(tf.range(NUM_INSTANCES), tf.ones([NUM_INSTANCES, SIZE]))
    embeddings, ids, _ = batch()
    assert layer(tf.constant(embeddings), tf.constant(ids)).instance_top1.numpy() == 0


def test_a_batch_of_one_row(make_classifier):
    layer, dense = make_classifier(), make_dense()
    embeddings, ids, hard_negatives = (part[:1] for part in batch())
    output = layer(tf.constant(embeddings), tf.constant(ids), ListsOfRows(hard_negatives), learning_rate=RATE)
    loss, *_ = dense.step(embeddings, ids, hard_negatives, RATE)
    assert relative_error(output.loss, loss) < 1e-5
    assert relative_error(layer.local_weights, dense.weights) < 1e-5


def test_nothing_in_it_is_trainable_by_others(make_classifier):
    layer = make_classifier()
    assert layer.trainable_variables == []
    assert [v.shape.as_list() for v in layer.non_trainable_variables] == [[NUM_INSTANCES, SIZE]] * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("part", ["weights", "momentum"])
def test_storage(make_classifier, part, dtype):
    """A step that differs from float32's by the rounding of what is stored: less than one number to the next."""
    layer, dense = make_classifier(**{f"{part}_dtype": dtype}), make_dense()
    if part == "weights":  # the comparison starts from what is stored
        dense.weights = layer.read(tf.range(NUM_INSTANCES)).numpy().astype(np.float64)
    before = dense.weights.copy()
    embeddings, ids, hard_negatives = batch()
    output = layer(tf.constant(embeddings), tf.constant(ids), ListsOfRows(hard_negatives), learning_rate=RATE)
    loss, *_ = dense.step(embeddings, ids, hard_negatives, RATE)
    assert relative_error(output.loss, loss) < 1e-5
    stored = {"weights": layer.classes.weights, "momentum": layer.classes.momentum}
    for name, table in stored.items():
        assert table.values.dtype == (dtype if name == part else tf.float32)
        rows, expected = table.read(tf.range(NUM_INSTANCES)).numpy(), getattr(dense, DENSE_NAMES[name])
        resolution = 0.0 if name != part else 2.0**-7 * np.abs(expected)
        if table.scales is not None:
            resolution = table.scales.numpy()[:, np.newaxis]
        assert np.all(np.abs(rows - expected) < resolution + 1e-5)
    assert relative_error(layer.read(tf.range(NUM_INSTANCES)), before) > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_weights_keep_small_steps(make_passes, dtype):
    """Steps of a hundredth of what can be stored, and less, add up, as no rounding to the nearest lets them."""
    layer = ShardedClassifier(
        64, 128, smoothing=0.0, momentum=0.0, weight_decay=0.1, weights_dtype=dtype, make_passes=make_passes
    )
    layer.write(tf.range(64), tf.ones([64, 128]))
    embeddings = tf.zeros([0, 128])  # without a batch only the decay moves the rows
    for step in range(50):
        layer(embeddings, tf.zeros([0], tf.int32), learning_rate=4e-4, step=step)
    assert layer.read(tf.range(64)).numpy().mean() == pytest.approx((1 - 4e-5) ** 50, abs=3e-4)


def test_bfloat16_products(make_classifier):
    """Close to float32, and not the same."""
    embeddings, ids, hard_negatives = batch()
    outputs = []
    for dtype in ("float32", "bfloat16"):
        layer = make_classifier(products_dtype=dtype)
        x = tf.constant(embeddings)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = layer(x, tf.constant(ids), ListsOfRows(hard_negatives), learning_rate=RATE).loss
        outputs.append((loss.numpy(), tape.gradient(loss, x).numpy(), layer.local_momentum.numpy()))
    for exact, rounded in zip(*outputs):
        assert 1e-6 < relative_error(rounded, exact) < 0.02


def test_dtypes_must_be_known():
    with pytest.raises(ValueError, match=r"weights_dtype='float16': must be one of \('float32', 'bfloat16', 'int8'\)"):
        ShardedClassifier(5, 2, weights_dtype="float16")
    with pytest.raises(ValueError, match=r"products_dtype='int8': must be one of \('float32', 'bfloat16'\)"):
        ShardedClassifier(5, 2, products_dtype="int8")


def test_smoothing_needs_hard_negatives(make_classifier):
    embeddings, ids, _ = batch()
    with pytest.raises(ValueError, match=r"smoothing=0\.2: hard_negatives are needed, such as .* a k below 53, after"):
        make_classifier()(tf.constant(embeddings), tf.constant(ids))


def test_unknown_loss():
    with pytest.raises(ValueError, match=r"smoothing_loss='kl': must be one of \('marginal', 'cross_entropy'\)"):
        ShardedClassifier(5, 2, smoothing_loss="kl")


def test_gaussian_rows_have_unit_expected_length():
    layer = ShardedClassifier(5000, 32, seed=3)
    layer.initialize_gaussian()
    rows = layer.local_weights.numpy()
    assert np.mean(np.sum(rows**2, axis=1)) == pytest.approx(1.0, abs=0.02)
    assert abs(rows.mean()) < 2e-3
    other = ShardedClassifier(5000, 32, seed=4)
    other.initialize_gaussian()
    assert relative_error(other.local_weights, rows) > 1


@pytest.mark.parametrize("num_workers", [2, 3])
def test_gaussian_rows_do_not_depend_on_the_split(monkeypatch, num_workers):
    num_instances = 150_001  # three blocks of draws
    alone = ShardedClassifier(num_instances, 2)
    alone.initialize_gaussian()
    parts = []
    monkeypatch.setattr(collectives, "_size", num_workers)
    for rank in range(num_workers):
        monkeypatch.setattr(collectives, "_rank", rank)
        layer = ShardedClassifier(num_instances, 2)
        layer.initialize_gaussian()
        parts.append(layer.local_weights.numpy())
        assert layer.num_local == len(parts[-1]) in (num_instances // num_workers, num_instances // num_workers + 1)
    np.testing.assert_array_equal(np.concatenate(parts), alone.local_weights)
    assert len(np.unique(alone.local_weights, axis=0)) > 0.99 * num_instances  # no block repeats another


def test_what_computes_the_passes():
    weights, momentum = (Table(tf.Variable(tf.zeros([5, 2]))) for _ in range(2))
    classes = LocalClasses(weights, momentum, 0)
    warm, cold = (Softmax(tau, "marginal") for tau in (0.025, 0.02))
    made = {name: [passes_of(name)(classes, softmax) for softmax in (warm, cold)] for name in CLASS_PASSES}
    assert {name: [type(passes) for passes in both] for name, both in made.items()} == {
        "auto": [CompiledPasses, CompiledPasses],
        "operations": [PortablePasses, PortablePasses],
        "xla": [PortablePasses, PortablePasses],
    }
    assert [made[name][1].uses_xla for name in ("operations", "xla")] == [False, True]


@pytest.mark.parametrize("name", CLASS_PASSES)
def test_a_run_takes_the_passes_it_is_told(name):
    config = PretrainConfig(class_passes=name, smoothing=0.0, embedding_size=SIZE)
    method = make_method(config, NUM_INSTANCES, encoder=None)
    made = method.classifier._passes
    assert isinstance(made, CompiledPasses if name == "auto" else PortablePasses)
    assert getattr(made, "uses_xla", False) == (name == "xla")


def test_lists_of_all_classes_are_looked_up(make_classifier):
    """The same as hard negatives given row by row."""
    embeddings, ids, hard_negatives = batch()
    lists = HardNegatives(make_classifier(), NUM_HARD_NEGATIVES)
    lists.refresh()
    outputs = [
        make_classifier()(tf.constant(embeddings), tf.constant(ids), given, learning_rate=RATE)
        for given in (lists, ListsOfRows(hard_negatives))
    ]
    np.testing.assert_array_equal(outputs[0].loss, outputs[1].loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_batch_without_rows_is_survived(smoothing):
    classifier = ShardedClassifier(7, 4, smoothing=smoothing)
    classifier.initialize_gaussian()
    hard_negatives = ListsOfRows(tf.zeros([0, 2], tf.int32)) if smoothing else None
    output = classifier(tf.zeros([0, 4]), tf.zeros([0], tf.int32), hard_negatives, 0.1)
    assert output.loss == 0 and output.instance_top1 == 0
    assert np.isfinite(classifier.local_weights.numpy()).all()
