"""DIET on one worker against a dense linear classifier in float64, with tiles that do not end with the classes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier import tiles
from instcls_tf.classifier.initial_weights import drawn_blocks
from instcls_tf.classifier.output import moved
from instcls_tf.methods import class_softmax
from instcls_tf.methods.diet import DIET
from tests import method_references as reference
from tests.reference import relative_error, sgd

NUM_INSTANCES, SIZE, ROWS = 13, 6, 10


@pytest.fixture(autouse=True)
def tiles_of_four(monkeypatch):
    monkeypatch.setattr(class_softmax, "_TILE_ELEMENTS", 4 * ROWS)


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Features, and ids of two rows each."""
    random = np.random.default_rng(step)
    ids = np.repeat(random.choice(NUM_INSTANCES, ROWS // 2, replace=False), 2).astype(np.int32)
    features = random.normal(size=[NUM_INSTANCES, SIZE])[ids] + random.normal(size=[ROWS, SIZE])
    return features.astype(np.float32), ids


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("smoothing", [0.8, 0.0])
def test_training_equals_dense_reference(optimizer, smoothing):
    method = DIET(NUM_INSTANCES, SIZE, label_smoothing=smoothing, optimizer=optimizer, learning_rate_factor=2.0)
    weights, buffer, adamw = method.local_weights.numpy().astype(np.float64), 0.0, reference.AdamW(0.05)
    tops = []
    for step in range(4):
        features, ids = batch(step)
        x = tf.constant(features)
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = moved(*method.prepare(x, tf.constant(ids), 0.05 / (step + 1), step))
            doubled = 2.0 * output.loss
        assert relative_error(output.loss, reference.diet(features, weights, ids, smoothing)) < 1e-5
        expected = reference.numerical_gradient(
            lambda x, w=weights, ids=ids: 2 * reference.diet(x, w, ids, smoothing), features
        )
        assert relative_error(tape.gradient(doubled, x), expected) < 1e-5
        tops.append(output.instance_top1.numpy())
        assert tops[-1] == pytest.approx(np.mean(np.argmax(features @ weights.T, axis=1) == ids))
        gradient = reference.numerical_gradient(
            lambda w, x=features, ids=ids: reference.diet(x, w, ids, smoothing), weights
        )
        if optimizer == "sgd":
            weights, buffer = sgd(weights, gradient, buffer, 0.1 / (step + 1), 0.9, 0.05)
        else:
            weights = adamw.step(weights, gradient, 0.1 / (step + 1))
        assert relative_error(method.local_weights, weights) < 1e-5
    assert 0 < np.mean(tops) < 1


def test_large_logits_stay_in_range():
    method = DIET(NUM_INSTANCES, SIZE)
    features, ids = batch(0)
    method.local_weights.assign(2000 * method.local_weights)
    output, _ = method.prepare(tf.constant(features), tf.constant(ids), 0.1, 0)
    logits = features.astype(np.float64) @ method.local_weights.numpy().astype(np.float64).T
    assert logits.max() > 500  # beyond what exp can take
    top = logits.max(axis=1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    expected = -np.mean(0.2 * log_p[np.arange(ROWS), ids] + 0.8 * log_p.mean(axis=1))
    assert relative_error(output.loss, expected) < 1e-5


def test_the_weights_stay_until_they_are_told_to_move():
    method = DIET(NUM_INSTANCES, SIZE)
    before = method.local_weights.numpy()
    method.prepare(*map(tf.constant, batch(0)), 0.1, 0)
    np.testing.assert_array_equal(method.local_weights, before)
    assert method.moves.numpy() == 0


def test_a_loss_that_is_not_finite_moves_nothing():
    method = DIET(NUM_INSTANCES, SIZE)
    before = method.local_weights.numpy()
    features, ids = batch(0)
    features[3] = np.inf
    with pytest.raises(tf.errors.InvalidArgumentError, match="the loss of the global batch"):
        moved(*method.prepare(tf.constant(features), tf.constant(ids), 0.1, 0))
    np.testing.assert_array_equal(method.local_weights, before)


def test_initial_weights_are_those_of_a_linear_layer_whoever_owns_them(monkeypatch):
    monkeypatch.setattr(tiles, "DRAWN_BLOCK_CLASSES", 5)
    weights = DIET(NUM_INSTANCES, SIZE, seed=3).local_weights.numpy()
    assert 0.9 * SIZE**-0.5 < np.abs(weights).max() <= SIZE**-0.5 and len(np.unique(weights)) == weights.size

    def draw(shape, seed):
        return tf.random.stateless_uniform(shape, seed, -(SIZE**-0.5), SIZE**-0.5)

    for bounds in ((0, 4), (4, 11), (11, 13)):
        blocks = list(drawn_blocks(draw, bounds, NUM_INSTANCES, SIZE, 3))
        np.testing.assert_array_equal(np.concatenate([part for _, part in blocks]), weights[slice(*bounds)])
        for first, part in blocks:
            np.testing.assert_array_equal(part, weights[first : first + len(part)])


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"optimizer='adam': must be one of \('adamw', 'sgd'\)"):
        DIET(NUM_INSTANCES, SIZE, optimizer="adam")


@pytest.mark.parametrize("optimizer, slots", [("adamw", 3), ("sgd", 2)])
def test_a_checkpoint_keeps_each_workers_slots(optimizer, slots):
    method = DIET(NUM_INSTANCES, SIZE, optimizer=optimizer)
    sliced = method.sliced()
    assert len(sliced) == slots
    assert all((part.begin, part.total, part.variable.shape) == (0, 13, (13, 6)) for part in sliced.values())
    named = {id(part.variable) for part in sliced.values()} | {id(part) for part in method.replicated().values()}
    assert named == {id(variable) for variable in method.variables}
