"""The projective transform is the same with TensorFlow Addons and without."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.data import projective


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="TensorFlow Addons are not made for this Python")
def test_addons_and_the_operation_beneath_agree():
    random = np.random.default_rng(0)
    images = tf.constant(random.uniform(0, 255, [5, 7, 9, 3]), tf.float32)
    transforms = tf.constant(random.normal([1, 0, 0, 0, 1, 0, 0, 0], 0.1, [5, 8]), tf.float32)
    assert projective._of_addons is not None
    np.testing.assert_array_equal(projective.transform(images, transforms), projective.by_operation(images, transforms))


def test_a_shift_by_whole_pixels():
    images = tf.constant(np.arange(2 * 4 * 5 * 1).reshape(2, 4, 5, 1), tf.float32)
    moved = projective.by_operation(images, tf.constant([[1, 0, 2, 0, 1, 1, 0, 0]] * 2, tf.float32)).numpy()
    expected = np.zeros([2, 4, 5, 1], np.float32)
    expected[:, :3, :3] = images[:, 1:, 2:]
    np.testing.assert_array_equal(moved, expected)
