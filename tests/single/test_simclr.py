"""NT-Xent on one worker against Eq. 1 of SimCLR in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.output import moved
from instcls_tf.methods.nt_xent import nt_xent
from instcls_tf.methods.simclr import SimCLR
from tests import method_references as reference
from tests.reference import relative_error

SIZE = 8


def batch(ids: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows near their instances' directions, of different lengths."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=[max(ids, default=0) + 1, SIZE])
    rows = centers[ids] + 0.8 * random.normal(size=[len(ids), SIZE])
    return (rows * np.linspace(0.3, 5, len(ids))[:, None]).astype(np.float32), np.array(ids, np.int32)


def loss_and_gradient(embeddings, ids, temperature, scale=1.0):
    x = tf.constant(embeddings)
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = nt_xent(x, tf.constant(ids), temperature, "test")
        loss = scale * output.loss
    return output, tape.gradient(loss, x)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 0.01])
@pytest.mark.parametrize(
    "ids",
    [
        [0, 0, 1, 1, 2, 2, 3, 3],
        [0, 1, 2, 3, 0, 1, 2, 3],
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
        [0, 0, 1, 1, 0, 0, 2, 2],
        [0, 0, 1, 2, 2],
    ],
    ids=["two_views", "views_apart", "three_views", "repeated_instance", "without_positive"],
)
def test_equals_equation_1(ids, temperature):
    embeddings, ids = batch(ids)
    output, gradient = loss_and_gradient(embeddings, ids, temperature, scale=2.0)
    tolerance = 1e-5 if temperature > 0.02 else 2e-4
    assert relative_error(output.loss, reference.nt_xent(embeddings, ids, temperature)) < tolerance
    expected = reference.numerical_gradient(lambda x: 2.0 * reference.nt_xent(x, ids, temperature), embeddings)
    assert relative_error(gradient, expected) < tolerance
    assert output.instance_top1.numpy() == pytest.approx(reference.nearest_is_own(embeddings, ids))


def test_top1_counts_some_rows_and_misses_some():
    embeddings, ids = batch([0, 0, 1, 1, 2, 2, 3, 3])
    assert 0 < loss_and_gradient(embeddings, ids, 0.1)[0].instance_top1.numpy() < 1


@pytest.mark.parametrize("ids", [[], [4], [0, 1, 2]], ids=["no_rows", "one_row", "no_pairs"])
def test_without_pairs_there_is_nothing_to_learn(ids):
    output, gradient = loss_and_gradient(*batch(ids), 0.1)
    assert output.loss.numpy() == 0
    np.testing.assert_array_equal(gradient, np.zeros([len(ids), SIZE]))


def test_one_instance_alone_has_no_negatives_and_a_loss_of_0():
    output, gradient = loss_and_gradient(*batch([3, 3]), 0.1)
    assert output.loss.numpy() == 0 and output.instance_top1.numpy() == 1
    np.testing.assert_array_equal(gradient, np.zeros([2, SIZE]))


def test_a_loss_that_is_not_finite_is_refused():
    embeddings, ids = batch([0, 0, 1, 1])
    embeddings[2] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="the loss of the global batch"):
        moved(*SimCLR().prepare(tf.constant(embeddings), tf.constant(ids), 0.1, 3))


def test_simclr_is_nt_xent_at_its_temperature():
    embeddings, ids = batch([0, 0, 1, 1, 2, 2])
    for method, temperature in ((SimCLR(), 0.2), (SimCLR(temperature=0.5), 0.5)):
        output = moved(*method.prepare(tf.constant(embeddings, tf.float16), tf.constant(ids), 0.1, 3))
        assert output.loss.dtype == tf.float32
        assert relative_error(output.loss, reference.nt_xent(embeddings.astype(np.float16), ids, temperature)) < 1e-3
        assert method.variables == ()
