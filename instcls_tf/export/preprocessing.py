"""What exported models do to images before the network sees them: the centred square, resized, rounded.

Pixel for pixel what the evaluation's images are (`data.augment`, preset "none"), so that a classifier fitted on
extracted features fits an exported model's as well. Only arrays of the very size that the encoder sees are taken for
images that were prepared already.
"""

from __future__ import annotations

from typing import Callable

import tensorflow as tf

from instcls_tf.data.resizing import centre_side, resize_to_square

Resize = Callable[[tf.Tensor, int], tf.Tensor]


def central_square(
    images: tf.Tensor,
    image_size: int,
    fraction: float,
    resize: Resize = resize_to_square,
    is_rounded: bool = True,
    passes_prepared: bool = True,
) -> tf.Tensor:
    """Whole images to what the encoder sees.

    Args:
      images: uint8 `[b, h, w, 3]`.
      image_size: S, pixels.
      fraction: side of the square as a fraction of the shorter side.
      resize: `resize_to_square`, or `resize_in_products` for formats that have nothing like its operations.
      is_rounded: False leaves the fractions that resizing brings.
      passes_prepared: images of S x S pixels count as prepared and pass unchanged; files are none of these.

    Returns:
      uint8 `[b, S, S, 3]`; float32 without rounding.
    """
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    is_prepared = (height == image_size) & (width == image_size) & passes_prepared
    side = tf.where(is_prepared, image_size, centre_side(height, width, fraction))
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top : top + side, left : left + side]
    resized = resize(square, image_size)
    return tf.cast(resized + 0.5, tf.uint8) if is_rounded else resized  # rounds as the views do, within [0, 255]


def resize_in_products(images: tf.Tensor, size: int) -> tf.Tensor:
    """`resize_to_square` in operations that every format has: two matrix products, or where an image grows, gathering.

    Converters write a broken file for `ScaleAndTranslate`, and what they put in its place computes other weights: a
    position that is off by a millionth turns the rounding of some pixels. Here weights and, of images that grow, pixels
    are the same to the last bit.

    Args:
      images: `[M, H, W, 3]` of any number type.
      size: S, pixels.

    Returns:
      float32 `[M, S, S, 3]`.
    """
    pixels = tf.cast(images, tf.float32)
    shrinks = tf.reduce_max(tf.shape(images)[1:3]) > size
    return tf.where(shrinks, _multiplied(pixels, size), _gathered(pixels, size))


def _multiplied(pixels: tf.Tensor, size: int) -> tf.Tensor:
    count, height, width, _ = tf.unstack(tf.shape(pixels))
    rows = tf.matmul(_weights(height, size)[None], tf.reshape(pixels, [count, height, width * 3]))  # [M, S, W * 3]
    columns = tf.transpose(tf.reshape(rows, [count, size, width, 3]), [0, 2, 1, 3])
    resized = tf.matmul(_weights(width, size)[None], tf.reshape(columns, [count, width, size * 3]))
    return tf.transpose(tf.reshape(resized, [count, size, size, 3]), [0, 2, 1, 3])


def _gathered(pixels: tf.Tensor, size: int) -> tf.Tensor:
    """Between the four nearest pixels, in the steps of TensorFlow's `ResizeBilinear`."""
    above, below, down = _neighbours(tf.shape(pixels)[1], size)
    left, right, across = _neighbours(tf.shape(pixels)[2], size)

    def between(row: tf.Tensor) -> tf.Tensor:
        first, second = tf.gather(row, left, axis=2), tf.gather(row, right, axis=2)
        return first + (second - first) * across[None, None, :, None]

    top, bottom = between(tf.gather(pixels, above, axis=1)), between(tf.gather(pixels, below, axis=1))
    return top + (bottom - top) * down[None, :, None, None]


def _neighbours(length: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of each output row the two nearest input rows `[S]`, and how far it is on the way from one to the other."""
    # Not the constant itself: converters turn a division by one into a product, which rounds otherwise.
    divisor = tf.cast(tf.where(length > 0, size, 1), tf.float32)
    places = (tf.range(size, dtype=tf.float32) + 0.5) * (tf.cast(length, tf.float32) / divisor) - 0.5
    lower = tf.floor(places)
    first = tf.maximum(tf.cast(lower, tf.int32), 0)
    return first, tf.minimum(tf.cast(tf.math.ceil(places), tf.int32), length - 1), places - lower


def _weights(length: tf.Tensor, size: int) -> tf.Tensor:
    """`[S, length]`: how much of each input row is in each output row, in the float32 steps of TensorFlow's kernels."""
    inputs = tf.cast(length, tf.float32)
    shrink = tf.where(inputs > size, 1.0 / (size / inputs), inputs / size)
    centres = (tf.range(size, dtype=tf.float32) + 0.5) * shrink
    places = tf.range(inputs, dtype=tf.float32) + 0.5
    distances = tf.abs(places[None] - centres[:, None]) * (1.0 / tf.maximum(shrink, 1.0))
    triangle = tf.maximum(1.0 - distances, 0.0)  # [S, length]
    return triangle * (1.0 / tf.reduce_sum(triangle, axis=1, keepdims=True))
