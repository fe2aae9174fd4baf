"""The classifier as an ordinary layer of one worker, without a launcher, against the dense float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import classifier_sizes, collectives, compiled_softmax, softmax, tiles
from instcls_tf.classifier import ShardedClassifier, sample_classes
from tests import reference
from tests.reference import relative_error

NUM_INSTANCES, SIZE, HARD = 53, 8, 5
RATE = 0.3


@pytest.fixture(autouse=True, params=["compiled", "portable"])
def passes(request, monkeypatch):
    """Every test runs by the compiled kernels, and by TensorFlow's own operations, with several tiles."""
    if request.param == "compiled":
        assert compiled_softmax.available()
        monkeypatch.setattr(classifier_sizes, "kernel_tile_classes", lambda *_: 20)
    else:
        monkeypatch.setattr(compiled_softmax, "available", lambda: False)
        monkeypatch.setattr(tiles, "tile_classes", lambda *_: 20)


def weights() -> np.ndarray:
    random = np.random.default_rng(1)
    rows = random.normal(size=[NUM_INSTANCES, SIZE]) * random.uniform(0.5, 2.0, [NUM_INSTANCES, 1])
    return rows.astype(np.float32)


def batch(step: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings `[12, D]` of any length, ids `[12]` and hard negatives `[12, K]`."""
    random = np.random.default_rng(10 + step)
    ids = np.repeat(random.choice(NUM_INSTANCES, 6, replace=False), 2).astype(np.int32)
    noise = random.normal(size=[12, SIZE]) * np.linspace(0.2, 3, 12)[:, np.newaxis]
    hard = reference.hard_negatives(weights().astype(np.float64), HARD)[ids]
    return ((weights()[ids] + noise) * 7).astype(np.float32), ids, hard.astype(np.int32)


def make_classifier(**changes) -> ShardedClassifier:
    layer = ShardedClassifier(NUM_INSTANCES, SIZE, **changes)
    layer.write(tf.range(NUM_INSTANCES), tf.constant(weights()))
    return layer


def make_dense(**changes) -> reference.DenseClassifier:
    settings = {"temperature": 0.15, "smoothing": 0.2, "smoothing_loss": "marginal", **changes}
    return reference.DenseClassifier(weights(), **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"smoothing_loss": "cross_entropy", "temperature": 0.01},
        {"momentum": 0.5, "weight_decay": 0.1, "smoothing": 0.0},
    ],
    ids=["defaults", "cold", "other_sgd"],
)
def test_training_equals_dense_reference(changes):
    """A few steps with a changing learning rate; the caller scales the loss by 2, which the rows must not notice."""
    layer, dense = make_classifier(**changes), make_dense(**changes)
    tolerance = 1e-5 if layer.temperature > 0.1 else 2e-4
    for step in range(4):
        embeddings, ids, hard = batch(step)
        rate = RATE / (step + 1)
        with tf.GradientTape() as tape:
            x = tf.constant(embeddings)
            tape.watch(x)
            output = layer(x, tf.constant(ids), tf.constant(hard), learning_rate=rate, step=step)
            doubled = 2.0 * output.loss
        loss, gradient, top1 = dense.step(embeddings, ids, hard if layer.smoothing else None, rate)
        assert relative_error(output.loss, loss) < tolerance
        assert relative_error(tape.gradient(doubled, x), 2.0 * gradient) < tolerance
        assert output.instance_top1.numpy() == pytest.approx(top1)
        assert 0 < top1 < 1
    assert relative_error(layer.local_rows, dense.weights) < tolerance
    assert relative_error(layer.local_momentum, dense.buffer) < tolerance


def test_one_trace_for_all_learning_rates_and_steps():
    layer = make_classifier(smoothing=0.0)
    embeddings, ids, _ = batch()
    for step, rate in enumerate((0.1, 0.2, 0, tf.constant(0.4))):
        layer(tf.constant(embeddings), tf.constant(ids), learning_rate=rate, step=step)
    assert layer._step.experimental_get_tracing_count() == 1


def test_without_a_learning_rate_the_rows_stay():
    layer = make_classifier()
    embeddings, ids, hard = batch()
    output = layer(tf.constant(embeddings), tf.constant(ids), tf.constant(hard))
    loss, *_ = make_dense().step(embeddings, ids, hard, 0.0)
    assert relative_error(output.loss, loss) < 1e-5
    np.testing.assert_array_equal(layer.local_rows, weights())
    np.testing.assert_array_equal(layer.local_momentum, np.zeros_like(weights()))


def test_learning_rate_factor_multiplies_the_rate():
    embeddings, ids, hard = batch()
    rows = []
    for factor, rate in ((4.0, 0.1), (1.0, 0.4)):
        layer = make_classifier(learning_rate_factor=factor)
        layer(tf.constant(embeddings), tf.constant(ids), tf.constant(hard), learning_rate=rate)
        rows.append(layer.local_rows.numpy())
    np.testing.assert_allclose(*rows, rtol=1e-6)
    assert relative_error(rows[0], weights()) > 1e-3


def test_momentum_does_not_wait_for_the_learning_rate():
    """A step at rate 0 leaves the rows, but not the momentum: the rate multiplies when the momentum is applied."""
    layer, dense = make_classifier(), make_dense()
    embeddings, ids, hard = batch()
    for rate in (0.0, RATE):
        layer(tf.constant(embeddings), tf.constant(ids), tf.constant(hard), learning_rate=rate)
        dense.step(embeddings, ids, hard, rate)
    assert relative_error(layer.local_rows, dense.weights) < 1e-5


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_embeddings(dtype):
    """The sums stay in float32: only the rounding of the input and of its gradient is seen."""
    embeddings, ids, hard = batch()
    x = tf.cast(embeddings, dtype)
    layer = make_classifier()
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = layer(x, tf.constant(ids), tf.constant(hard))
    gradient = tape.gradient(output.loss, x)
    rounded = tf.cast(x, tf.float32).numpy()
    loss, expected, _ = make_dense().step(rounded, ids, hard, 0.0)
    assert output.loss.dtype == output.instance_top1.dtype == tf.float32
    assert relative_error(output.loss, loss) < 1e-5
    assert gradient.dtype == dtype
    assert relative_error(tf.cast(gradient, tf.float32), expected) < (1e-3 if dtype == tf.float16 else 1e-2)


def test_layer_is_float32_under_mixed_precision():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        layer = make_classifier()
        embeddings, ids, hard = batch()
        output = layer(tf.constant(embeddings), tf.constant(ids), tf.constant(hard))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert layer.local_rows.dtype == layer.local_momentum.dtype == tf.float32
    loss, *_ = make_dense().step(embeddings, ids, hard, 0.0)
    assert relative_error(output.loss, loss) < 1e-5


@pytest.mark.parametrize("smoothing_loss", softmax.SMOOTHING_LOSSES)
def test_embeddings_that_are_not_finite_raise_before_rows_move(smoothing_loss):
    layer = make_classifier(smoothing_loss=smoothing_loss)
    embeddings, ids, hard = batch()
    for value in (np.nan, np.inf):
        embeddings[3, 2] = value
        with pytest.raises(tf.errors.InvalidArgumentError, match="the loss of the global batch"):
            layer(tf.constant(embeddings), tf.constant(ids), tf.constant(hard), learning_rate=RATE)
        np.testing.assert_array_equal(layer.local_rows, weights())
        np.testing.assert_array_equal(layer.local_momentum, np.zeros_like(weights()))


def test_ties_do_not_count_as_recognised():
    layer = make_classifier(smoothing=0.0)
    layer.write(tf.range(NUM_INSTANCES), tf.ones([NUM_INSTANCES, SIZE]))
    embeddings, ids, _ = batch()
    assert layer(tf.constant(embeddings), tf.constant(ids)).instance_top1.numpy() == 0


def test_a_batch_of_one_row():
    layer, dense = make_classifier(), make_dense()
    embeddings, ids, hard = (part[:1] for part in batch())
    output = layer(tf.constant(embeddings), tf.constant(ids), tf.constant(hard), learning_rate=RATE)
    loss, *_ = dense.step(embeddings, ids, hard, RATE)
    assert relative_error(output.loss, loss) < 1e-5
    assert relative_error(layer.local_rows, dense.weights) < 1e-5


def test_nothing_in_it_is_trainable_by_others():
    layer = make_classifier()
    assert layer.trainable_variables == []
    assert [v.shape.as_list() for v in layer.non_trainable_variables] == [[NUM_INSTANCES, SIZE]] * 2


@pytest.mark.parametrize("part", ["weights", "momentum"])
def test_bfloat16_storage(part):
    """Half the bytes, and a step that differs from float32's by the rounding of what is stored."""
    layer, dense = make_classifier(**{f"{part}_dtype": "bfloat16"}), make_dense()
    if part == "weights":  # the comparison starts from what is stored
        dense.weights = layer.read(tf.range(NUM_INSTANCES)).numpy().astype(np.float64)
    before = dense.weights.copy()
    embeddings, ids, hard = batch()
    output = layer(tf.constant(embeddings), tf.constant(ids), tf.constant(hard), learning_rate=RATE)
    loss, *_ = dense.step(embeddings, ids, hard, RATE)
    assert relative_error(output.loss, loss) < 1e-5
    stored = {"weights": layer.local_rows, "momentum": layer.local_momentum}
    for name, variable in stored.items():
        assert variable.dtype == (tf.bfloat16 if name == part else tf.float32)
    rows = layer.read(tf.range(NUM_INSTANCES)).numpy()
    resolution = 2.0**-7 * np.abs(dense.weights) if part == "weights" else 0.0
    np.testing.assert_array_less(np.abs(rows - dense.weights), resolution + 1e-6)
    momentum = tf.cast(layer.local_momentum, tf.float32).numpy()
    resolution = 2.0**-7 * np.abs(dense.buffer) if part == "momentum" else 0.0
    np.testing.assert_array_less(np.abs(momentum - dense.buffer), resolution + 1e-5)
    assert relative_error(rows, before) > 1e-3


def test_bfloat16_weights_keep_small_steps():
    """Steps of a hundredth of what bfloat16 resolves add up, as no rounding to the nearest lets them."""
    layer = ShardedClassifier(64, 128, smoothing=0.0, momentum=0.0, weight_decay=0.1, weights_dtype="bfloat16")
    layer.write(tf.range(64), tf.ones([64, 128]))
    embeddings = tf.zeros([0, 128])  # without a batch only the decay moves the rows
    for step in range(50):
        layer(embeddings, tf.zeros([0], tf.int32), learning_rate=4e-4, step=step)
    assert layer.read(tf.range(64)).numpy().mean() == pytest.approx((1 - 4e-5) ** 50, abs=3e-4)


def test_bfloat16_products():
    """Close to float32, and not the same."""
    embeddings, ids, hard = batch()
    outputs = []
    for dtype in ("float32", "bfloat16"):
        layer = make_classifier(products_dtype=dtype)
        x = tf.constant(embeddings)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = layer(x, tf.constant(ids), tf.constant(hard), learning_rate=RATE).loss
        outputs.append((loss.numpy(), tape.gradient(loss, x).numpy(), layer.local_momentum.numpy()))
    for exact, rounded in zip(*outputs):
        assert 1e-6 < relative_error(rounded, exact) < 0.02


def test_dtypes_must_be_known():
    with pytest.raises(ValueError, match=r"weights_dtype='float16': must be one of \('float32', 'bfloat16'\)"):
        ShardedClassifier(5, 2, weights_dtype="float16")


def test_smoothing_needs_hard_negatives():
    embeddings, ids, _ = batch()
    with pytest.raises(ValueError, match=r"smoothing=0\.2: hard_negatives are needed"):
        make_classifier()(tf.constant(embeddings), tf.constant(ids))


def test_unknown_loss():
    with pytest.raises(ValueError, match=r"smoothing_loss='kl': must be one of \('marginal', 'cross_entropy'\)"):
        ShardedClassifier(5, 2, smoothing_loss="kl")


def test_gaussian_rows_have_unit_expected_length():
    layer = ShardedClassifier(5000, 32, seed=3)
    layer.initialize_gaussian()
    rows = layer.local_rows.numpy()
    assert np.mean(np.sum(rows**2, axis=1)) == pytest.approx(1.0, abs=0.02)
    assert abs(rows.mean()) < 2e-3
    other = ShardedClassifier(5000, 32, seed=4)
    other.initialize_gaussian()
    assert relative_error(other.local_rows, rows) > 1


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
        parts.append(layer.local_rows.numpy())
        assert layer.num_local == len(parts[-1]) in (num_instances // num_workers, num_instances // num_workers + 1)
    np.testing.assert_array_equal(np.concatenate(parts), alone.local_rows)
    assert len(np.unique(alone.local_rows, axis=0)) > 0.99 * num_instances  # no block repeats another


def test_sample_holds_the_batch_and_a_uniform_rest():
    own, counts = tf.constant([40, 3, 40, 52, 3, 0]), np.zeros(NUM_INSTANCES)
    samples = [sample_classes(own, NUM_INSTANCES, 20, (0, step)).numpy() for step in range(200)]
    for sample in samples:
        assert sample.dtype == np.int32
        assert len(sample) == 20
        assert (np.diff(sample) > 0).all()
        assert {0, 3, 40, 52} <= set(sample)
        assert sample[0] == 0 and sample[-1] < NUM_INSTANCES
        counts[sample] += 1
    others = np.delete(counts, [0, 3, 40, 52])
    share = 16 / 49  # of the other classes, per step
    assert np.abs(others / 200 - share).max() < 5 * np.sqrt(share * (1 - share) / 200)


def test_sample_depends_on_seed_and_step_alone():
    own = tf.constant([4, 1])
    first = sample_classes(own, NUM_INSTANCES, 20, (0, 0)).numpy()
    np.testing.assert_array_equal(first, sample_classes(own[::-1], NUM_INSTANCES, 20, (0, tf.constant(0))))
    for other in ((0, 1), (1, 0)):
        assert (first != sample_classes(own, NUM_INSTANCES, 20, other).numpy()).any()


def test_sample_of_all_and_of_the_batch_alone():
    own = tf.constant([7, 2, 9])
    np.testing.assert_array_equal(sample_classes(own, 11, 11, (0, 0)), np.arange(11))
    np.testing.assert_array_equal(sample_classes(own, 11, 3, (0, 0)), [2, 7, 9])


def test_sampled_step_moves_the_sample_only():
    layer = make_classifier(smoothing=0.0, sampled_classes=20, seed=5)
    dense = make_dense(smoothing=0.0)
    for step in range(2):
        embeddings, ids, _ = batch(step)
        sample = sample_classes(tf.constant(ids), NUM_INSTANCES, 20, (5, step)).numpy()
        before = layer.local_rows.numpy()
        output = layer(tf.constant(embeddings), tf.constant(ids), learning_rate=RATE, step=step)
        loss, *_ = dense.step(embeddings, ids, None, RATE, sample)
        assert relative_error(output.loss, loss) < 1e-5
        moved = np.flatnonzero((layer.local_rows.numpy() != before).any(axis=1))
        np.testing.assert_array_equal(moved, sample)
    assert relative_error(layer.local_rows, dense.weights) < 1e-5
    assert relative_error(layer.local_momentum, dense.buffer) < 1e-5


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_batch_without_rows_is_survived(smoothing):
    classifier = ShardedClassifier(7, 4, smoothing=smoothing)
    classifier.initialize_gaussian()
    hard = tf.zeros([0, 2], tf.int32) if smoothing else None
    output = classifier(tf.zeros([0, 4]), tf.zeros([0], tf.int32), hard, 0.1)
    assert output.loss == 0 and output.instance_top1 == 0
    assert np.isfinite(classifier.local_rows.numpy()).all()
