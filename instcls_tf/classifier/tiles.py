"""Into what pieces the work on N classes is cut: tiles of both passes, blocks of the search and of random draws.

A tile should stay in the cache between the product that makes its logits and the product that uses them up, and be wide
enough that products run at full speed and the loop around it costs nothing. No TensorFlow: the planner counts the
memory of the same pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from instcls_tf.distributed import cores

if TYPE_CHECKING:
    import tensorflow as tf

FLOAT_BYTES = 4

# ---- Tiles of TensorFlow's operations
GPU_TILE_BYTES = 256 * 2**20
# A worker's share of the last-level cache is left for half to the tile, for half to the operands of its products.
_CACHE_SHARE = 0.5
_FALLBACK_CACHE_BYTES = 16 * 2**20
# Below this products slow down; above it nothing gains. Multiples suit the blocks of matrix products.
_LEAST_CLASSES, _MULTIPLE = 256, 64
# Arrays `[c, D]` that live beside the logits of a tile: weights, directions, gradients, momentum.
_CLASS_ARRAYS = 4

# ---- Tiles of the compiled kernels, whose sources have the first three as well
KERNEL_PANEL = 64  # rows of the batch that meet a tile at once
KERNEL_BLOCK = 6  # rows of a product's block: a tile has a multiple of as many classes
KERNEL_LEAST_CLASSES = 64  # fewer are not worth a thread
KERNEL_COLUMNS = 32  # the most that columns are padded to: two vectors
# Of a core's second-level cache for the arrays of a tile; the rest is for panels of the batch and their sums, which
# stream through (steps take the same time, to 3 %, between an eighth and three quarters).
_KERNEL_CACHE_SHARE = 0.25
_KERNEL_FALLBACK_CACHE_BYTES, _KERNEL_LARGEST_CACHE_BYTES = 2**20, 4 * 2**20

# ---- Random class weights are drawn in blocks of so many classes, which are the same on any number of workers
DRAWN_BLOCK_CLASSES = 8192


class SearchSizes(NamedTuple):
    """Into what pieces the search for hard negatives is cut."""

    candidates: int = 65536  # classes whose weights travel at a time, at most, [c, D]
    tile_elements: int = 2**22  # of one tile of similarities, [q, c], at most


SEARCH_SIZES = SearchSizes()


def portable_tile_classes(batch_rows: int | tf.Tensor, embedding_size: int, tile_bytes: int) -> int | tf.Tensor:
    """c, so that `[B, c]` logits and a few `[c, D]` arrays fit into a tile of TensorFlow's operations.

    Args:
      batch_rows: B; an integer or an int32 scalar.
      embedding_size: D.
      tile_bytes: `GPU_TILE_BYTES`, or `cpu_tile_bytes`.
    """
    classes = tile_bytes // FLOAT_BYTES // (batch_rows + _CLASS_ARRAYS * embedding_size) // _MULTIPLE * _MULTIPLE
    if isinstance(classes, int):
        return max(_LEAST_CLASSES, classes)
    import tensorflow as tf

    return tf.maximum(_LEAST_CLASSES, classes)


def cpu_tile_bytes(local_workers: int) -> int:
    """Bytes of a tile of TensorFlow's operations on a CPU.

    Args:
      local_workers: how many workers share this machine's caches.
    """
    cache = cores.cache_bytes(3) or cores.cache_bytes(2) or _FALLBACK_CACHE_BYTES
    return int(_CACHE_SHARE * cache / local_workers)


def kernel_tile_classes(embedding_size: int) -> int:
    """c of the compiled kernels, each thread of which has a tile in the cache of its core.

    Args:
      embedding_size: D.
    """
    cache = min(cores.cache_bytes(2) or _KERNEL_FALLBACK_CACHE_BYTES, _KERNEL_LARGEST_CACHE_BYTES)
    classes = int(_KERNEL_CACHE_SHARE * cache) // kernel_class_bytes(embedding_size)
    return max(4 * KERNEL_BLOCK, classes // KERNEL_BLOCK * KERNEL_BLOCK)


def kernel_class_bytes(embedding_size: int) -> int:
    """Bytes of a class in a tile of the kernels: `[c, D]` directions and gradients, `[c, 64]` logits of a panel."""
    return (2 * padded(embedding_size, KERNEL_COLUMNS) + KERNEL_PANEL) * FLOAT_BYTES


def padded(size: int, multiple: int) -> int:
    """The smallest multiple that is not below `size`."""
    return -(-size // multiple) * multiple
