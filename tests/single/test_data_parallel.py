"""The yardstick makes the plain step: softmax cross-entropy over all classes, momentum SGD."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf.benchmark.data_parallel import DataParallelClassifier
from instcls_tf.distributed import collectives


def test_two_steps_equal_dense_numpy():
    classifier = DataParallelClassifier(7, 4, temperature=0.5, momentum=0.9)
    random = np.random.default_rng(0)
    inputs, ids = random.normal(size=(5, 4)), np.array([0, 3, 3, 6, 1])
    weights, kernel = (
        variable.numpy().astype(np.float64) for variable in (classifier.class_weights, classifier.kernel)
    )
    momentums = [np.zeros_like(weights), np.zeros_like(kernel)]
    for _ in range(2):
        loss = classifier.step(tf.constant(inputs, tf.float32), tf.constant(ids), tf.constant(0.3))
        z = inputs @ kernel
        norms = np.linalg.norm(z, axis=1, keepdims=True)
        x = z / norms / 0.5
        exp = np.exp(x @ weights.T)
        p = exp / exp.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(loss, -np.log(p[np.arange(5), ids]).mean(), rtol=1e-5)
        p[np.arange(5), ids] -= 1
        dx = p @ weights / 5 / 0.5  # for the normalised embeddings
        unit = z / norms
        dz = (dx - (dx * unit).sum(axis=1, keepdims=True) * unit) / norms
        gradients = [p.T @ x / 5, inputs.T @ dz]
        momentums = [0.9 * momentum + gradient for momentum, gradient in zip(momentums, gradients)]
        weights, kernel = (value - 0.3 * momentum for value, momentum in zip((weights, kernel), momentums))
    np.testing.assert_allclose(classifier.class_weights, weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(classifier.kernel, kernel, rtol=1e-4, atol=1e-6)


def test_one_worker_needs_no_horovod_for_its_tape():
    tape = tf.GradientTape()
    assert collectives.data_parallel_tape(tape) is tape
