"""The projective transform of TensorFlow Addons, or the operation beneath it for Pythons without Addons (3.12)."""

from __future__ import annotations

import warnings

import tensorflow as tf

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Addons have reached their end of life
        from tensorflow_addons.image import transform as _of_addons
except ImportError:
    _of_addons = None


def transform(images: tf.Tensor, transforms: tf.Tensor) -> tf.Tensor:
    """Images looked at through projective maps: bilinear, black beyond the edge.

    Args:
      images: `[M, H, W, C]` float32.
      transforms: `[M, 8]` float32; a row `(a0, a1, a2, b0, b1, b2, c0, c1)` takes the output's `(x, y)` from the
        input's `((a0 x + a1 y + a2) / k, (b0 x + b1 y + b2) / k)` with `k = c0 x + c1 y + 1`.

    Returns:
      `[M, H, W, C]` float32.
    """
    if _of_addons is None:
        return by_operation(images, transforms)
    return _of_addons(images, transforms, interpolation="bilinear", fill_mode="constant", fill_value=0.0)


def by_operation(images: tf.Tensor, transforms: tf.Tensor) -> tf.Tensor:
    """The same as `transform`, without Addons."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
