"""PIC on one worker: sampled softmax and lazily moved weights against all weights moved at every step, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.output import moved
from instcls_tf.methods import class_softmax
from instcls_tf.methods.pic import PIC
from tests import method_references as reference
from tests.reference import relative_error, sgd

NUM_INSTANCES, SIZE, RECENT, TEMPERATURE = 17, 6, 5, 0.2


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(class_softmax, "_TILE_ELEMENTS", 4 * 8)


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Few instances at a time, two rows each: most classes are outside for many steps; some never come."""
    random = np.random.default_rng(step)
    ids = np.repeat(random.choice(NUM_INSTANCES - 2, 2, replace=False), 2).astype(np.int32)
    embeddings = np.random.default_rng(99).normal(size=[NUM_INSTANCES, SIZE])[ids] + random.normal(size=[4, SIZE])
    return (3 * embeddings).astype(np.float32), ids


def make_pic(**changes) -> PIC:
    return PIC(
        NUM_INSTANCES, SIZE, **{"recent_negatives": RECENT, "weight_decay": 0.02, "longest_absence": 40} | changes
    )


def rate(step: int) -> float:
    return 0.3 / (1 + step % 3)


@pytest.mark.parametrize("recent", [RECENT, 0, 100], ids=["some", "batch_only", "all_visited"])
def test_training_equals_moving_all_weights_at_every_step(recent):
    method = make_pic(recent_negatives=recent, learning_rate_factor=2.0)
    classes_of = reference.RecentClasses(recent)
    weights, buffer = method.local_weights.numpy().astype(np.float64), np.zeros([NUM_INSTANCES, SIZE])
    sizes = []
    for step in range(25):
        embeddings, ids = batch(step)
        classes = classes_of.of_step(ids)
        sizes.append(len(classes))
        x = tf.constant(embeddings)
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = moved(*method.prepare(x, tf.constant(ids), rate(step), step))
            doubled = 2.0 * output.loss
        assert relative_error(output.loss, reference.pic(embeddings, weights, ids, classes, TEMPERATURE)) < 1e-5
        if step % 5 == 0:
            expected = reference.numerical_gradient(
                lambda x, w=weights, ids=ids, classes=classes: 2 * reference.pic(x, w, ids, classes, TEMPERATURE),
                embeddings,
            )
            assert relative_error(tape.gradient(doubled, x), expected) < 1e-5
        gradient = np.zeros_like(weights)
        gradient[classes] = weight_gradient(embeddings, weights, ids, classes)
        weights, buffer = sgd(weights, gradient, buffer, 2 * rate(step), 0.9, 0.02)
    assert max(sizes) < NUM_INSTANCES
    now, momentum = method._caught_up(tf.range(NUM_INSTANCES))
    for instance in range(NUM_INSTANCES):
        assert relative_error(now[instance], weights[instance]) < 1e-5
        assert relative_error(momentum[instance], buffer[instance]) < 1e-5
    yet_to_move = [relative_error(*pair) > 1e-2 for pair in zip(method.local_weights.numpy(), weights)]
    assert any(yet_to_move) and not all(yet_to_move)


def weight_gradient(embeddings, weights, ids, classes) -> np.ndarray:
    def loss(part):
        return reference.pic(embeddings, part, np.searchsorted(classes, ids), range(len(classes)), TEMPERATURE)

    return reference.numerical_gradient(loss, weights[classes], step=1e-7)


def test_a_class_away_for_longer_than_remembered_is_moved_as_if_away_so_long():
    method = make_pic(longest_absence=3, weight_decay=0.1)
    for step in range(6):
        moved(*method.prepare(*map(tf.constant, batch(step)), 0.5, step))
    never = tf.constant([NUM_INSTANCES - 1])
    weights, buffer = method.local_weights.sparse_read(never).numpy().astype(np.float64), 0.0
    for _ in range(3):
        weights, buffer = sgd(weights, 0.0, buffer, 0.5, 0.9, 0.1)
    assert relative_error(method._caught_up(never)[0], weights) < 1e-6


def test_nothing_changes_until_the_weights_are_told_to_move():
    method = make_pic()
    moved(*method.prepare(*map(tf.constant, batch(0)), 0.1, 0))
    before = [variable.numpy() for variable in method.variables]
    loss = method.prepare(*map(tf.constant, batch(1)), 0.1, 1)[0].loss
    assert loss.numpy() > 0
    for variable, value in zip(method.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_a_loss_that_is_not_finite_changes_nothing():
    method = make_pic()
    before = [variable.numpy() for variable in method.variables]
    embeddings, ids = batch(0)
    embeddings[1] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="the loss of the global batch"):
        moved(*method.prepare(tf.constant(embeddings), tf.constant(ids), 0.1, 0))
    for variable, value in zip(method.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_top1_is_among_the_classes_of_the_step():
    method = make_pic(recent_negatives=0)
    embeddings, ids = batch(0)
    own, other = sorted(set(ids.tolist()))
    method.local_weights.scatter_update(tf.IndexedSlices(tf.constant(embeddings[ids == own][:1]), [own]))
    method.local_weights.scatter_update(tf.IndexedSlices(-tf.constant(embeddings[ids == own][:1]), [other]))
    rows = np.flatnonzero(ids == own)[:1]

    def top1(embeddings, ids) -> float:
        output, _ = method.prepare(tf.constant(embeddings), tf.constant(ids), 0.1, 0)
        return output.instance_top1.numpy()

    assert top1(embeddings[rows], ids[rows]) == 1
    assert top1(embeddings[[rows[0], rows[0]]], [own, other]) == 0.5


def test_initial_weights_are_gaussian_and_small():
    weights = PIC(4000, SIZE, seed=1).local_weights.numpy()
    assert np.std(weights) == pytest.approx(0.01, rel=0.02) and abs(np.mean(weights)) < 2e-4


def test_weights_and_embeddings_of_length_0_have_no_direction():
    method = make_pic()
    method.local_weights.assign(tf.zeros_like(method.local_weights))
    embeddings, ids = batch(0)
    embeddings[0] = 0
    output = moved(*method.prepare(tf.constant(embeddings), tf.constant(ids), 0.1, 0))
    assert output.loss.numpy() == pytest.approx(np.log(len(set(ids.tolist()))))  # every cosine is 0
    assert np.isfinite(method.local_weights.numpy()).all() and np.isfinite(method.local_momentum.numpy()).all()


def test_a_checkpoint_keeps_everything():
    method = make_pic()
    sliced = method.sliced()
    assert all((part.begin, part.total) == (0, NUM_INSTANCES) for part in sliced.values())
    named = {id(part.variable) for part in sliced.values()} | {id(part) for part in method.replicated().values()}
    assert named == {id(variable) for variable in method.variables}
