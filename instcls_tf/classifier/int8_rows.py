"""Rows of int8 with a scale each: a quarter of float32's memory for class weights and momentum.

A row is its whole numbers times its scale. Scales are powers of two: numbers are divided by them exactly, and a row
whose scale is halved keeps its values to the last bit. And a scale stays while it fits: a new one in each step would
move all numbers of the row off their grid, to be rounded anew, by far more than a step moves them. The numbers of the
kernels in `kernels/streamed_softmax.cc` are the same.
"""

from __future__ import annotations

import tensorflow as tf

# The largest number of a row, and the smallest that this may be before the scale is halved: well below half of it, or
# a row near the border would change its scale, and lose digits, again and again.
MOST, _LEAST = 127, 48
# Carries into the exponent of a float what is above MOST / 64, 64 being 2^6.
_ROUND_UP, _MOST_EXPONENT = 0x1FFFF, 6
_SMALLEST_EXPONENT = 127 - 100  # of a scale, 2^-100, as float32 stores it
_INFINITY = 0x7F800000


def next_scales(values: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    """The scales of rows that get new values.

    Args:
      values: `[m, D]` float32.
      before: `[m]` float32, the rows' scales so far; 0 for those that begin.

    Returns:
      `[m]` float32; not finite where a value of the row is not.
    """
    # As whole numbers, of which NaN is the largest: maxima of floats would pass over it.
    magnitudes = tf.bitwise.bitwise_and(tf.bitcast(values, tf.int32), tf.constant(0x7FFFFFFF))
    bits = tf.reduce_max(magnitudes, axis=1)  # [m]
    largest = tf.bitcast(bits, tf.float32)
    exponent = tf.bitwise.right_shift(bits + _ROUND_UP, tf.constant(23)) - _MOST_EXPONENT
    smallest = tf.bitcast(tf.bitwise.left_shift(tf.maximum(exponent, _SMALLEST_EXPONENT), 23), tf.float32)
    stays = (before > 0) & (_LEAST * before <= largest) & (largest <= MOST * before)
    return tf.where(bits >= _INFINITY, largest, tf.where(stays, before, smallest))


def round_to_nearest(values: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """The numbers `[m, D]` int8 of rows `[m, D]` float32, given their scales `[m]`."""
    return tf.cast(tf.round(values / _divisors(scales)), tf.int8)


def round_stochastically(values: tf.Tensor, scales: tf.Tensor, random: tf.Tensor) -> tf.Tensor:
    """To one of the two neighbouring numbers, with the probabilities that keep the mean.

    Args:
      values: `[m, D]` float32.
      scales: `[m]` float32, from `next_scales`.
      random: `[m, D]` uint32, of which 24 bits are used.

    Returns:
      `[m, D]` int8.
    """
    numbers = values / _divisors(scales)
    below = tf.floor(numbers)
    uniform = tf.cast(tf.bitwise.right_shift(random, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24
    # The part above `below` is exact, as `numbers + uniform` would not be: what lies on the grid stays there.
    return tf.cast(below + tf.cast(uniform < numbers - below, tf.float32), tf.int8)


def values_of(numbers: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """The values `[m, D]` float32 of rows `[m, D]` int8 with scales `[m]`."""
    return tf.cast(numbers, tf.float32) * scales[:, tf.newaxis]


def _divisors(scales: tf.Tensor) -> tf.Tensor:
    return tf.where(scales > 0, scales, 1.0)[:, tf.newaxis]
