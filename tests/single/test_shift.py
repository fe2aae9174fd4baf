"""The kernels where exp of a logit leaves float32, or is nothing: small temperatures, opposite classes, NaN."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier import softmax
from instcls_tf.classifier.labels import select_targets
from instcls_tf.classifier.softmax import Batch, Softmax, Totals
from instcls_tf.config import SMOOTHING_LOSSES
from tests.kernels import FAMILIES, classes_of, passes_of_family, step_of


@pytest.fixture(params=FAMILIES)
def compiled(request):
    """Makes the passes of one family of processors."""
    return passes_of_family(request.param)


@pytest.mark.parametrize("smoothing_loss", SMOOTHING_LOSSES)
@pytest.mark.parametrize("temperature", [0.001, 0.02, 0.0249, 0.025])
@pytest.mark.parametrize("own", [0, 1])
def test_a_shift_keeps_the_worst_row_finite(compiled, smoothing_loss, temperature, own):
    """The own class opposite to the embedding, another one on it: exp of the logits spans more than float32."""
    which = Softmax(temperature, smoothing_loss)
    w = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    w[own] *= -1
    local = classes_of(w)
    passes = compiled(local, which)
    batch = Batch(tf.constant([[1.0, 0.0]]), select_targets(tf.constant([[own]]), tf.constant([[1.0]])))
    batch = batch._replace(shift=passes.local_maxima(batch))
    sums = passes.forward(batch)
    totals = Totals(sums.exp_sum, sums.target_sum)
    assert sums.max_negative.numpy() == pytest.approx(1 / temperature) == -sums.own_logit.numpy()
    loss = softmax.loss_per_row(totals, batch.shift, smoothing_loss)
    assert loss.numpy() == pytest.approx(2 / temperature, rel=1e-5)
    np.testing.assert_allclose(softmax.embedding_gradient(sums, totals, which), [[2 / temperature, 0]], rtol=1e-5)
    passes.backward(batch, totals, step_of(0.1))
    np.testing.assert_allclose(local.momentum.values, 0, atol=1e-5 / temperature)


@pytest.mark.parametrize("temperature", [0.001, 0.15])
def test_the_largest_negative_may_be_opposite(compiled, temperature):
    """Of two classes the own one is on the embedding, and is not taken for the other."""
    passes = compiled(classes_of([[1.0, 0.0], [-1.0, 0.0]]), Softmax(temperature, "marginal"))
    batch = Batch(tf.constant([[1.0, 0.0]]), select_targets(tf.constant([[0]]), tf.constant([[1.0]])))
    sums = passes.forward(batch._replace(shift=passes.local_maxima(batch)))
    assert sums.max_negative.numpy() == pytest.approx(-1 / temperature) == -sums.own_logit.numpy()


@pytest.mark.parametrize("temperature", [0.15, 0.02])
def test_what_is_not_a_number_stays(compiled, temperature):
    """So that a run stops: no maximum and no lower bound may swallow it."""
    embeddings = tf.constant([[1.0, 0.0], [0.6, 0.8]])
    passes = compiled(classes_of([[1.0, 0.0], [np.nan, 1.0], [0.0, 1.0]]), Softmax(temperature, "marginal"))
    batch = Batch(embeddings, select_targets(tf.constant([[0], [2]]), tf.ones([2, 1])))
    sums = passes.forward(batch._replace(shift=passes.local_maxima(batch)))
    assert np.isnan(sums.exp_sum).all()
