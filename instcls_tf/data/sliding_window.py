"""PIC's order of images: a window slides over a list of all instances, so that they are visited often while in it.

Source: Cao et al., "Parametric Instance Classification for Unsupervised Visual Feature Learning" (arXiv:2006.14618),
the sliding-window data scheduler. All instances stand in one random order. A window of W of them is trained on once,
in a random order of its own, then moves on by S places; past the end of the list it goes on at its beginning. Each
instance is visited in W / S windows running, then not until the window has been all around: as often as with epochs in
all.
"""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.data.permutation import permute


def sliding_window_ids(
    places: tf.Tensor, seed: int, window_number: tf.Tensor | int, num_instances: int, window: int, stride: int
) -> tf.Tensor:
    """The ids at some places of a window, as `permute` gives those of an epoch; computed, never stored.

    Args:
      places: `[b]` int64, from 0 to W - 1.
      seed: of the list and of the orders within windows.
      window_number: which window, from 0 on.
      num_instances: N.
      window: W, at most N; 2^17 in the paper, of the 1.28 million images of ImageNet.
      stride: S; 2^14 in the paper.

    Returns:
      `[b]` int64 ids; all W places of a window have different ones.

    Raises:
      ValueError: the window has more places than there are instances, or does not move on.
    """
    if not 1 <= window <= num_instances:
        raise ValueError(f"window={window}: must be 1 to the number of instances, {num_instances}")
    if stride < 1:
        raise ValueError(f"stride={stride}: must be at least 1")
    number = tf.cast(window_number, tf.int64)
    # Windows have the permutations from 1 on: 0 is the list's.
    within = permute(places, seed, number + 1, window)
    listed = (number * stride % num_instances + within) % num_instances
    return permute(listed, seed, 0, num_instances)
