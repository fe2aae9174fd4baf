"""Random class weights that do not depend on how the classes are split over the workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import tensorflow as tf

from instcls_tf.classifier import tiles


def drawn_blocks(
    draw: Callable[[list[int], list[int]], tf.Tensor], bounds: tuple[int, int], total: int, size: int, seed: int
) -> Iterator[tuple[int, tf.Tensor]]:
    """The weights of this worker's classes, block by block; whoever shares a block draws all of it.

    Args:
      draw: from a shape and a seed of two integers to random values, stateless.
      bounds: this worker's first class, and one after its last.
      total: N.
      size: D.
      seed: of the draws.

    Yields:
      The first class of a part and its weights `[c, D]`, in the order of classes.
    """
    (begin, end), block = bounds, tiles.DRAWN_BLOCK_CLASSES
    for start in range(begin // block * block, end, block):
        stop = min(start + block, total)
        drawn = draw([stop - start, size], [seed, start])
        low, high = max(start, begin), min(stop, end)
        yield low, drawn[low - start : high - start]
