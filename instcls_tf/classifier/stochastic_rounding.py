"""How class weights and their momentum are kept: float32, or bfloat16 in half the memory.

A class weight moves by less than bfloat16 resolves in most steps of a run. What is stored after a step is therefore
rounded stochastically, to one of the two neighbouring numbers with the probabilities that keep the mean: small steps
add up. The random bits are a hash of step, class and column, so that a run is the same on any number of workers.
"""

from __future__ import annotations

import tensorflow as tf

# Keeps the random bits of class weights and momentum apart.
WEIGHTS, MOMENTUM = 0, 1


def round_for(variable: tf.Variable, values: tf.Tensor, class_ids: tf.Tensor, seed: tf.Tensor, part: int) -> tf.Tensor:
    """Float32 values in the dtype of a variable.

    Args:
      variable: float32 or bfloat16.
      values: `[m, D]` float32.
      class_ids: `[m]` int32, whose weights or momentum they are.
      seed: scalar int32, another one in each step.
      part: `WEIGHTS` or `MOMENTUM`.
    """
    if variable.dtype == tf.float32:
        return values
    size = values.shape[1]
    key = _random_bits(tf.constant(2, tf.uint32) * tf.bitcast(seed, tf.uint32) + tf.constant(part, tf.uint32))
    first = tf.bitcast(class_ids, tf.uint32)[:, tf.newaxis] * tf.constant(size, tf.uint32)  # [m, 1], modulo 2^32
    place = first + tf.bitcast(tf.range(size), tf.uint32)  # [m, D]
    random = tf.bitwise.bitwise_and(_random_bits(tf.bitwise.bitwise_xor(place, key)), tf.constant(0xFFFF, tf.uint32))
    rounded = tf.bitwise.right_shift(tf.bitcast(values, tf.uint32) + random, tf.constant(16, tf.uint32))
    return tf.bitcast(tf.cast(rounded, tf.uint16), tf.bfloat16)


def _random_bits(x: tf.Tensor) -> tf.Tensor:
    """A hash of uint32, the same as in `kernels/streamed_softmax.cc`."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
        x *= tf.constant(factor, tf.uint32)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(16, tf.uint32)))
