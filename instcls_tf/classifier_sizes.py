"""Bytes of a classifier and of its training step, in this design and in plain data parallelism. No TensorFlow."""

from __future__ import annotations

import math

from instcls_tf import cores, partition

CPU, GPU = "cpu", "gpu"

_FLOAT = 4
# Arrays of one tile that live at once on a GPU: [B, c] logits and their exponentials; [c, D] class weights, directions,
# gradients and momentum, before and after the update.
_TILE_LOGITS, _TILE_ROWS = 2, 8
# A thread of the compiled kernels (CPUs) has [c, D] directions and gradients, [c, 64] logits, and [B, D] sums of its
# own for exponentials and targets; B is padded to panels and D to two vectors, at most 32 columns. Products in bfloat16
# keep another [c, D], as pairs. Fewer classes than these are not worth a thread.
_KERNEL_PANEL, _KERNEL_COLUMNS, _KERNEL_SUMS, _KERNEL_LEAST_CLASSES = 64, 32, 2, 64
# Of a core's second-level cache for the arrays of a tile; the rest is for panels of the batch and their sums, which
# stream through (steps take the same time, to 3 %, between an eighth and three quarters). A tile's classes are whole
# blocks of the product's rows.
_KERNEL_CACHE_SHARE, _KERNEL_BLOCK = 0.25, 6
_FALLBACK_CACHE_BYTES, _LARGEST_CACHE_BYTES = 2**20, 4 * 2**20
# [B, D] arrays of the global batch at once: embeddings, scaled ones (on CPUs in panels, and divided by S), G and the
# targets' weights, each before and after a tile on a GPU, their product, the gradient.
_BATCH_ROWS = 8
# Bytes of a non-zero label: class, label, column on all workers; place, order, row and sorted copies on the owner's.
_LABEL_BYTES, _OWN_LABEL_BYTES = 16, 48
# Gaussian rows are drawn in blocks, [8192, D]: the draw, scaled, the local part, and the one before.
_GAUSSIAN_BLOCK, _GAUSSIAN_COPIES = 8192, 4
# TensorFlow's allocator hands memory out of large regions, never merges them and never gives them back: 4 % on top of
# large arrays (measured).
_ALLOCATOR_SHARE = 0.04
_GPU_TILE_BYTES = 256 * 2**20
_BYTES = {"float32": 4, "bfloat16": 2}
_MIN_TILE, _TILE_MULTIPLE, _TILE_ROW_ARRAYS = 256, 64, 4


def classifier_bytes(
    num_instances: int,
    num_workers: int,
    batch_rows: int,
    embedding_size: int,
    *,
    device: str = CPU,
    threads: int = 1,
    weights_dtype: str = "float32",
    momentum_dtype: str = "float32",
) -> dict[str, int]:
    """The classifier of one worker: its state, and what a step takes besides.

    Args:
      num_instances: N.
      num_workers: T; planned is the worker with the most classes.
      batch_rows: B, rows of the global batch.
      embedding_size: D.
      device: `cpu` or `gpu`.
      threads: of a worker (CPUs only).
      weights_dtype: how class weights are kept.
      momentum_dtype: how their momentum is kept.
    """
    begin, end = partition.bounds(num_instances, num_workers, 0)
    weights, momentum = ((end - begin) * embedding_size * _BYTES[dtype] for dtype in (weights_dtype, momentum_dtype))
    if device == GPU:
        tile = min(end - begin, tile_classes(batch_rows, embedding_size))
        streaming = tile * (_TILE_LOGITS * batch_rows + _TILE_ROWS * embedding_size) * _FLOAT
    else:
        threads = max(1, min(threads, (end - begin) // _KERNEL_LEAST_CLASSES))
        tile = min(math.ceil((end - begin) / threads), kernel_tile_classes(embedding_size))
        sums = _KERNEL_SUMS * _padded(batch_rows, _KERNEL_PANEL) * _padded(embedding_size, _KERNEL_COLUMNS) * _FLOAT
        streaming = threads * (tile * _kernel_class_bytes(embedding_size) + sums)
    return {
        "class weights": weights,
        "momentum of class weights": momentum,
        "tile workspace": streaming,
        "allocator": round(_ALLOCATOR_SHARE * (weights + momentum)),
    }


def kernel_tile_classes(embedding_size: int) -> int:
    """c, the classes of a tile of the compiled kernels, each thread of which has one in the cache of its core.

    Args:
      embedding_size: D.
    """
    cache = min(cores.cache_bytes(2) or _FALLBACK_CACHE_BYTES, _LARGEST_CACHE_BYTES)
    classes = int(_KERNEL_CACHE_SHARE * cache) // _kernel_class_bytes(embedding_size)
    return max(4 * _KERNEL_BLOCK, classes // _KERNEL_BLOCK * _KERNEL_BLOCK)


def _kernel_class_bytes(embedding_size: int) -> int:
    return (2 * _padded(embedding_size, _KERNEL_COLUMNS) + _KERNEL_PANEL) * _FLOAT


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def tile_classes(batch_rows: int, embedding_size: int) -> int:
    """c, the classes of a tile on a GPU, as `tiles.tile_classes` chooses them.

    Args:
      batch_rows: B.
      embedding_size: D.
    """
    per_class = _FLOAT * (batch_rows + _TILE_ROW_ARRAYS * embedding_size)
    return max(_MIN_TILE, _GPU_TILE_BYTES // per_class // _TILE_MULTIPLE * _TILE_MULTIPLE)


def batch_bytes(num_workers: int, batch_rows: int, embedding_size: int, hard_negatives: int) -> int:
    """The global batch on one worker: gathered embeddings, their sums and gradients, and the labels.

    Args:
      num_workers: T.
      batch_rows: B.
      embedding_size: D.
      hard_negatives: K, 0 without smoothing.
    """
    labels = batch_rows * (1 + hard_negatives)
    return (
        _BATCH_ROWS * batch_rows * embedding_size * _FLOAT
        + labels * _LABEL_BYTES
        + math.ceil(labels / num_workers) * _OWN_LABEL_BYTES
    )


def peak_bytes(
    num_instances: int, num_workers: int, batch_rows: int, embedding_size: int, hard_negatives: int, **kept
) -> int:
    """The most that a classifier by itself takes: while it steps, or while its Gaussian rows are drawn before that.

    Args:
      num_instances: N.
      num_workers: T.
      batch_rows: B.
      embedding_size: D.
      hard_negatives: K, 0 without smoothing.
      **kept: as `classifier_bytes` has them.
    """
    parts = classifier_bytes(num_instances, num_workers, batch_rows, embedding_size, **kept)
    stepping = parts.pop("tile workspace") + batch_bytes(num_workers, batch_rows, embedding_size, hard_negatives)
    drawing = _GAUSSIAN_COPIES * min(_GAUSSIAN_BLOCK, num_instances) * embedding_size * _FLOAT
    return sum(parts.values()) + max(stepping, drawing)


def data_parallel_bytes(num_instances: int, num_workers: int, batch_rows: int, embedding_size: int) -> dict[str, int]:
    """The classifier of one worker under plain data parallelism; arguments as in `classifier_bytes`."""
    state = num_instances * embedding_size * _FLOAT
    # The local one, and the one summed over the workers.
    gradient = state * (2 if num_workers > 1 else 1)
    logits = math.ceil(batch_rows / num_workers) * num_instances * _FLOAT
    return {
        "class weights": state,
        "momentum of class weights": state,
        "gradient of class weights": gradient,
        "logits of the local rows": logits,
        "allocator": round(_ALLOCATOR_SHARE * (2 * state + gradient + logits)),
    }
