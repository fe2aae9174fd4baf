"""The labels of a batch as the few places where they are not 0, and the sample of Table 3."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.labels import label_distribution, sample_classes, select_targets, split_targets


def test_label_distribution():
    hard_negatives = tf.constant([[5, 2, 9, 1], [0, 3, 4, 6]])
    classes, labels = label_distribution(tf.constant([7, 8]), hard_negatives, 0.2)
    np.testing.assert_array_equal(classes, [[7, 5, 2, 9, 1], [8, 0, 3, 4, 6]])
    np.testing.assert_allclose(labels, [[0.8, 0.05, 0.05, 0.05, 0.05]] * 2, rtol=1e-6)
    for arguments in ((None, 0.2), (hard_negatives, 0.0)):
        classes, labels = label_distribution(tf.constant([7, 8]), *arguments)
        np.testing.assert_array_equal(classes, [[7], [8]])
        np.testing.assert_array_equal(labels, [[1.0], [1.0]])


def test_select_targets_keeps_streamed_classes_in_order():
    columns = tf.constant([[4, -1, 0], [-1, 7, 4], [2, 0, -1]])
    labels = tf.constant([[0.8, 0.1, 0.2], [0.8, 0.3, 0.4], [0.7, 0.5, 0.6]])
    targets = select_targets(columns, labels)
    np.testing.assert_array_equal(targets.column, [0, 0, 2, 4, 4, 7])
    np.testing.assert_array_equal(targets.row, [0, 2, 2, 0, 1, 1])
    np.testing.assert_allclose(targets.label, [0.2, 0.5, 0.7, 0.8, 0.4, 0.3])
    np.testing.assert_array_equal(targets.is_own, [False, False, True, True, False, False])


def test_split_targets_by_a_sample():
    columns, labels = tf.constant([[4], [-1], [7], [4], [0], [9]]), tf.ones([6, 1])
    on_streamed, on_others = split_targets(columns, labels, tf.constant([0, 3, 4]))
    np.testing.assert_array_equal(on_streamed.row, [4, 0, 3])
    np.testing.assert_array_equal(on_streamed.column, [0, 2, 2])
    np.testing.assert_array_equal(on_others.row, [2, 5])
    np.testing.assert_array_equal(on_others.column, [7, 9])
    assert tf.reduce_all(on_others.is_own) and tf.reduce_all(on_streamed.is_own)
    nothing, everything = split_targets(columns, labels, tf.zeros([0], tf.int32))
    assert len(nothing.row) == 0
    np.testing.assert_array_equal(everything.column, [0, 4, 4, 7, 9])


@pytest.mark.parametrize(("num_instances", "size"), [(53, 20), (53, 1), (53, 53), (10_000_000, 4)])
def test_a_sample_is_distinct_classes_in_order(num_instances, size):
    for step in range(5):
        sample = sample_classes(num_instances, size, 0, tf.constant(step)).numpy()
        assert sample.dtype == np.int32 and len(sample) == size
        assert (np.diff(sample) > 0).all() and sample[0] >= 0 and sample[-1] < num_instances


def test_a_sample_depends_on_seed_and_step():
    first = sample_classes(53, 20, 0, 0).numpy()
    np.testing.assert_array_equal(first, sample_classes(53, 20, 0, tf.constant(0)))
    for other in ((0, 1), (1, 0)):
        assert (first != sample_classes(53, 20, *other).numpy()).any()


@pytest.mark.parametrize(
    ("num_instances", "size", "steps", "seeds"), [(501, 20, 1000, 4), (1000, 40, 1000, 2), (50_000, 1024, 2000, 1)]
)
def test_samples_are_uniform(num_instances, size, steps, seeds):
    """z scores of the draws of each class over many steps have deviation 1 (2.0 to 2.8 with small integers for a key).

    The deviation of so many scores is known to a sixtieth and better.
    """

    @tf.function
    def count(seed: int) -> tf.Tensor:
        samples = tf.map_fn(lambda step: sample_classes(num_instances, size, seed, step), tf.range(steps))
        return tf.math.bincount(tf.reshape(samples, [-1]), minlength=num_instances)

    share = size / num_instances
    counts = np.stack([count(seed).numpy() for seed in range(seeds)])
    scores = (counts - steps * share) / np.sqrt(steps * share * (1 - share))
    assert 0.95 < scores.std() < 1.05
    assert np.abs(scores).max() < 5.5
