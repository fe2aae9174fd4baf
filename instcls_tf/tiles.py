"""How wide a tile of classes is where TensorFlow's operations work on it.

A tile should stay in the cache between the product that makes its logits and the product that uses them up, and be wide
enough that products run at full speed and the loop around it costs nothing. Both follow from the device.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from instcls_tf import collectives, cores

# A worker's share of the cache is left for half to the tile, for half to the operands of its products.
_CACHE_FRACTION = 0.5
_FALLBACK_CACHE_BYTES = 16 * 2**20
_GPU_TILE_BYTES = 256 * 2**20
# Below this products slow down; above it nothing gains. Multiples suit the blocks of matrix products.
_MIN_CLASSES, _MULTIPLE = 256, 64
# Arrays `[c, D]` that live beside the logits of a tile: weights, directions, gradients, momentum.
_ROW_ARRAYS = 4


def tile_classes(batch_rows: int | tf.Tensor, embedding_size: int) -> int | tf.Tensor:
    """Classes per tile, so that `[B, c]` logits and a few `[c, D]` arrays fit in this worker's share of the cache.

    Args:
      batch_rows: B; an integer or an int32 scalar.
      embedding_size: D.
    """
    classes = _tile_bytes() // 4 // (batch_rows + _ROW_ARRAYS * embedding_size) // _MULTIPLE * _MULTIPLE
    return tf.maximum(_MIN_CLASSES, classes) if tf.is_tensor(classes) else max(_MIN_CLASSES, classes)


def _tile_bytes() -> int:
    if _has_gpu():
        return _GPU_TILE_BYTES
    return int(_CACHE_FRACTION * _last_level_cache_bytes() / collectives.local_size())


def _last_level_cache_bytes() -> int:
    return cores.cache_bytes(3) or cores.cache_bytes(2) or _FALLBACK_CACHE_BYTES


@functools.cache
def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))
