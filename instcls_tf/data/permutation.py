"""Permutations of any length, of which single places are computed and nothing is stored."""

from __future__ import annotations

from typing import Any

# index_shuffle's default of 4 rounds leaves neighbouring permutations correlated (0.75 at 50,000 ids).
_SHUFFLE_ROUNDS = 16
# Keep permutations for different uses of one seed apart.
EPOCH_ORDER, CLASS_SAMPLE = 7, 11


def permute(places: Any, seed: int, number: Any, size: Any, use: int = EPOCH_ORDER) -> Any:
    """The ids at some places (int64 `[b]`) of a permutation of `range(size)`; computed, never stored.

    Args:
      places: int64 `[b]`.
      seed: below 2^31; of all permutations of one use.
      number: integer scalar: which of them, an epoch or a step.
      size: integer scalar, how many ids there are.
      use: `EPOCH_ORDER` or `CLASS_SAMPLE`.
    """
    import tensorflow as tf

    # index_shuffle's own mixing of the key is weak: with small integers for a key, and below 2^18 ids, some ids come to
    # some places several times as often as others (z scores with a deviation of 4 at 50,000 ids).
    plain = tf.stack([tf.constant(seed + use * 2**32, tf.int64), tf.cast(number, tf.int64)])
    key = tf.random.stateless_uniform([3], plain, minval=None, maxval=None, dtype=tf.int64, alg="philox")
    largest = tf.cast(size, tf.int64) - 1
    return tf.raw_ops.RandomIndexShuffle(index=places, seed=key, max_index=largest, rounds=_SHUFFLE_ROUNDS)
