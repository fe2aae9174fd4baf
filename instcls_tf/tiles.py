"""How wide a tile of classes is, and how the element-wise work on it is compiled.

A tile should stay in the cache between the product that makes its logits and the product that uses them up, and be wide
enough that products run at full speed and the loop around it costs nothing. Both follow from the device.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Callable

import tensorflow as tf

from instcls_tf import collectives

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


@functools.cache
def _last_level_cache_bytes() -> int:
    for index in (3, 2):
        with contextlib.suppress(OSError, ValueError):
            text = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text()  # "32768K"
            return int(text.strip().removesuffix("K")) * 1024
    return _FALLBACK_CACHE_BYTES


@functools.cache
def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def compiled(function: Callable) -> Callable:
    """Element-wise work on the arrays of one tile, fused by XLA on CPUs.

    TensorFlow's own CPU kernels are built for machines without AVX-512 and take a pass over memory each; the compiled
    ones are about five times faster. XLA compiles anew for each shape, so only full tiles go there.

    Returns:
      A function of `(is_full, *tensors)`; `is_full` is a scalar bool.
    """
    fused = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def on_tile(is_full: tf.Tensor, *tensors: tf.Tensor):
        if _has_gpu():
            return function(*tensors)
        return tf.cond(is_full, lambda: fused(*tensors), lambda: function(*tensors))

    return on_tile
