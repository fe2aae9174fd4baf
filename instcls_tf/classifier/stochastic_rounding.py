"""How class weights and their momentum are rounded where they are kept in less than float32.

A class weight moves by less than bfloat16 or int8 resolve in most steps of a run. What is stored after a step is
therefore rounded stochastically, to one of the two neighbouring numbers with the probabilities that keep the mean:
small steps add up. The random bits are a hash of step, class and column, so that a run is the same on any number of
workers.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Keeps the random bits of class weights and momentum apart.
WEIGHTS, MOMENTUM = 0, 1


class Draw(NamedTuple):
    """What the random bits of some rows depend on."""

    class_ids: tf.Tensor  # [m] int32, whose weights or momentum they are
    seed: tf.Tensor  # scalar int32, another one in each step
    part: int  # `WEIGHTS` or `MOMENTUM`


def random_bits(draw: Draw, size: int) -> tf.Tensor:
    """`[m, size]` uint32, the same as in `kernels/streamed_softmax.cc`."""
    key = _hash(tf.constant(2, tf.uint32) * tf.bitcast(draw.seed, tf.uint32) + tf.constant(draw.part, tf.uint32))
    first = tf.bitcast(draw.class_ids, tf.uint32)[:, tf.newaxis] * tf.constant(size, tf.uint32)  # [m, 1], modulo 2^32
    place = first + tf.bitcast(tf.range(size), tf.uint32)  # [m, size]
    return _hash(tf.bitwise.bitwise_xor(place, key))


def to_bfloat16(values: tf.Tensor, draw: Draw) -> tf.Tensor:
    """Values `[m, D]` float32 in bfloat16."""
    random = tf.bitwise.bitwise_and(random_bits(draw, values.shape[1]), tf.constant(0xFFFF, tf.uint32))
    rounded = tf.bitwise.right_shift(tf.bitcast(values, tf.uint32) + random, tf.constant(16, tf.uint32))
    return tf.bitcast(tf.cast(rounded, tf.uint16), tf.bfloat16)


def _hash(x: tf.Tensor) -> tf.Tensor:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
        x *= tf.constant(factor, tf.uint32)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(16, tf.uint32)))
