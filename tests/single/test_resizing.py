"""Resizing against Pillow's, in pixels and in sharpness."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.data.resizing import resize_to_square


def _detailed(height, width):
    """Waves of all lengths from two pixels on, and some grain."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows**2 / (2.0 * height)) * np.cos(columns**2 / (2.0 * width))
    grain = np.random.default_rng(0).normal(0.0, 12.0, (height, width, 3))
    return np.clip(127 + 80 * waves[..., None] + grain, 0, 255).astype(np.uint8)


def _energy(image):
    """Mean squared difference of neighbouring pixels."""
    return np.mean(np.diff(image, axis=0) ** 2) + np.mean(np.diff(image, axis=1) ** 2)


@pytest.mark.parametrize(
    ("height", "width"), [(20, 25), (32, 32), (40, 44), (47, 61), (63, 63), (150, 33), (24, 90), (300, 200)]
)
def test_pixels_and_sharpness_are_pillows(height, width):
    image = _detailed(height, width)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    resized = resize_to_square(tf.constant(image[None]), 32)[0].numpy()
    assert np.abs(resized - expected).max() < 1.6, "Pillow rounds after each of its two passes"
    assert _energy(resized) / _energy(expected) == pytest.approx(1.0, abs=0.02)


def test_a_batch_is_its_images_one_by_one():
    images = tf.constant(np.stack([_detailed(50, 70), _detailed(50, 70)[::-1]]))
    both = resize_to_square(images, 32)
    for image, resized in zip(images, both):
        np.testing.assert_array_equal(resize_to_square(image[None], 32)[0], resized)


def test_range_and_size_are_kept():
    image = np.zeros([1, 65, 33, 3], np.uint8)
    image[:, ::2, ::2] = 255
    resized = resize_to_square(tf.constant(image), 32)
    assert resized.numpy().min() >= 0.0 and resized.numpy().max() <= 255.0
    np.testing.assert_array_equal(resize_to_square(tf.constant(image[:, :32, :32]), 32), image[:, :32, :32])
