"""The softmax over own classes and a sample of the others (Table 3), against the dense float64 reference."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.labels import sample_classes
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import SMOOTHING_LOSSES
from tests.classifiers import NUM_INSTANCES, PASSES, RATE, SIZE, batch, classifier, make_dense
from tests.reference import relative_error


@pytest.fixture(params=PASSES)
def make_classifier(request):
    """Makes classifiers that step by the compiled kernels, or by TensorFlow's own operations, with several tiles."""
    return functools.partial(classifier, functools.partial(request.param, tile_classes=20))


@pytest.mark.parametrize("temperature", [0.15, 0.01])
@pytest.mark.parametrize("smoothing_loss", SMOOTHING_LOSSES)
@pytest.mark.parametrize("size", [1, 4, 30, NUM_INSTANCES])
def test_sampled_steps_equal_the_dense_reference(make_classifier, size, smoothing_loss, temperature):
    """Fewer classes than the batch has, and more: own classes and the sample take part, nobody else moves."""
    layer = make_classifier(
        smoothing=0.0, sampled_classes=size, seed=5, smoothing_loss=smoothing_loss, temperature=temperature
    )
    dense = make_dense(smoothing=0.0, temperature=temperature)
    tolerance = 1e-5 if temperature > 0.1 else 2e-4
    for step in range(3):
        embeddings, ids, _ = batch(step)
        sample = sample_classes(NUM_INSTANCES, size, 5, step).numpy()
        before = layer.local_weights.numpy()
        with tf.GradientTape() as tape:
            x = tf.constant(embeddings)
            tape.watch(x)
            output = layer(x, tf.constant(ids), learning_rate=RATE, step=step)
        loss, gradient, top1 = dense.sampled_step(embeddings, ids, sample, RATE)
        if size == 1:  # alone with itself, or with one other
            np.testing.assert_allclose(output.loss, loss, rtol=tolerance, atol=1e-6)
        else:
            assert relative_error(output.loss, loss) < tolerance
        assert relative_error(tape.gradient(output.loss, x), gradient) < tolerance
        assert output.instance_top1.numpy() == pytest.approx(top1)
        moved = np.flatnonzero((layer.local_weights.numpy() != before).any(axis=1))
        np.testing.assert_array_equal(moved, np.union1d(sample, ids))
    assert relative_error(layer.local_weights, dense.weights) < tolerance
    assert relative_error(layer.local_momentum, dense.buffer) < tolerance


def test_a_sample_of_all_is_no_sample(make_classifier):
    embeddings, ids, _ = batch()
    results = []
    for size in (0, NUM_INSTANCES):
        layer = make_classifier(smoothing=0.0, sampled_classes=size)
        output = layer(tf.constant(embeddings), tf.constant(ids), learning_rate=RATE)
        results.append([*output, layer.local_weights])
    for whole, sampled in zip(*results):
        np.testing.assert_allclose(sampled, whole, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_sampled_classes_are_stored_alike(make_classifier, dtype):
    """Own classes outside of the sample are stored as those in it are; the others stay as they are, to the last bit."""
    kept = {"weights_dtype": dtype, "momentum_dtype": dtype, "products_dtype": "bfloat16"}
    layer, dense = make_classifier(smoothing=0.0, sampled_classes=4, **kept), make_dense(smoothing=0.0)
    before = layer.read(tf.range(NUM_INSTANCES)).numpy()
    dense.weights = before.astype(np.float64)
    embeddings, ids, _ = batch()
    output = layer(tf.constant(embeddings), tf.constant(ids), learning_rate=RATE)
    sample = sample_classes(NUM_INSTANCES, 4, 0, 0).numpy()
    loss, *_ = dense.sampled_step(embeddings, ids, sample, RATE)
    rows = layer.read(tf.range(NUM_INSTANCES)).numpy()
    assert relative_error(output.loss, loss) < 1e-2
    assert relative_error(rows, dense.weights) < 1e-2
    assert relative_error(layer.classes.momentum.read(tf.range(NUM_INSTANCES)), dense.buffer) < 2e-2
    others = np.setdiff1d(np.arange(NUM_INSTANCES), np.union1d(ids, sample))
    np.testing.assert_array_equal(rows[others], before[others])


@pytest.mark.parametrize("size", [-1, 54])
def test_samples_of_an_impossible_size(size):
    with pytest.raises(ValueError, match=f"sampled_classes={size}: must be 0 to the 53 classes"):
        ShardedClassifier(NUM_INSTANCES, SIZE, smoothing=0.0, sampled_classes=size)


def test_no_sample_with_smoothing():
    with pytest.raises(ValueError, match=r"sampled_classes=9: works with smoothing=0 only, not 0\.2"):
        ShardedClassifier(NUM_INSTANCES, SIZE, smoothing=0.2, sampled_classes=9)
