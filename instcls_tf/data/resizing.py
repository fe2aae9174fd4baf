"""Centred squares, and resizing, to squares or to less: sharp and without aliasing, as Pillow's bilinear filter."""

from __future__ import annotations

import tensorflow as tf


def centre_side(height: tf.Tensor, width: tf.Tensor, fraction: float) -> tf.Tensor:
    """Side of the centred square of an image, in pixels: at least one."""
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    return tf.maximum(1, tf.cast(tf.round(fraction * shorter), tf.int32))


def resize_to_square(images: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear when an image grows; when it shrinks, the triangle widens with the shrink (antialias).

    `tf.image.resize(antialias=True)` gives the same pixels, but two to three times slower: its pass along the columns
    works on three numbers at a time. Here both passes go along whole rows, with a transposition between them.

    Args:
      images: `[M, H, W, 3]` of any number type.
      size: S, pixels.

    Returns:
      float32 `[M, S, S, 3]`, within the range of the pixels.
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    resized = tf.cond(
        tf.maximum(height, width) > size,
        lambda: _resize_rows(_resize_rows(images, size), size),
        lambda: tf.image.resize(images, [size, size]),  # the same there, and reads 2 x 2 pixels
    )
    return tf.ensure_shape(resized, [None, size, size, 3])


def shrink(image: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """An image, uint8 `[H, W, 3]`, with fewer rows and columns, int32 scalars: uint8 `[height, width, 3]`."""
    resized = _resize_rows(_resize_rows(image[None], height), width)[0]
    return tf.cast(tf.round(resized), tf.uint8)


def _resize_rows(images: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """`[M, H, W, 3]` to the transposed `[M, W, S, 3]`."""
    count, height, width, _ = tf.unstack(tf.shape(images))
    resized = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(images, [count, height, 1, width * 3]),
        size=tf.stack([size, 1]),
        scale=tf.stack([tf.cast(size, tf.float32) / tf.cast(height, tf.float32), 1.0]),
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )
    return tf.transpose(tf.reshape(resized, [count, size, width, 3]), [0, 2, 1, 3])
