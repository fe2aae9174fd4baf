"""Bytes of a classifier and of its training step, in this design and in plain data parallelism. No TensorFlow."""

from __future__ import annotations

import math
from typing import Any

from instcls_tf.classifier import tiles
from instcls_tf.config import BFLOAT16, FLOAT32, INT8, PretrainConfig
from instcls_tf.distributed import partition

CPU, GPU = "cpu", "gpu"

_FLOAT = tiles.FLOAT_BYTES
# Arrays of one tile that live at once on a GPU: [B, c] logits and their exponentials; [c, D] class weights, directions,
# gradients and momentum, before and after the update.
_TILE_LOGITS, _TILE_CLASS_ARRAYS = 2, 8
# Besides its tile a thread of the compiled kernels (CPUs) has [B, D] sums of its own for exponentials and targets; B is
# padded to panels and D to two vectors. Products in bfloat16 keep another [c, D], as pairs.
_KERNEL_SUMS = 2
# [B, D] arrays of the global batch at once: embeddings, scaled ones (on CPUs in panels, and divided by S), G and the
# targets' weights, each before and after a tile on a GPU, their product, the gradient.
_BATCH_ARRAYS = 8
# Bytes of a non-zero label: class, label, column on all workers; place, order, row and sorted copies on the owner's.
_LABEL_BYTES, _OWN_LABEL_BYTES = 16, 48
# Of a block of Gaussian class weights: the draw, scaled, the local part, and the one before.
_GAUSSIAN_COPIES = 4
# While hard negatives are searched: similarities and ids of the new lists, [n, K]; two blocks of candidates, [c, D],
# the next one on its way; two arrays of a tile of similarities.
_SEARCH_LISTS, _SEARCH_BLOCKS, _SEARCH_TILES = 2, 2, 2
# TensorFlow's allocator hands memory out of large regions, never merges them and never gives them back: 4 % on top of
# large arrays (measured).
_ALLOCATOR_SHARE = 0.04
_BYTES = {FLOAT32: _FLOAT, BFLOAT16: 2, INT8: 1}
_SCALE_BYTES = {FLOAT32: 0, BFLOAT16: 0, INT8: _FLOAT}  # of a class


def table_bytes(num_classes: int, embedding_size: int, dtype: str) -> int:
    """Of the weights of so many classes, or of their momentum, kept in a dtype."""
    return num_classes * (embedding_size * _BYTES[dtype] + _SCALE_BYTES[dtype])


def classifier_bytes(
    num_instances: int,
    num_workers: int,
    batch_rows: int,
    embedding_size: int,
    *,
    device: str = CPU,
    threads: int = 1,
    weights_dtype: str = PretrainConfig.class_weights_dtype,
    momentum_dtype: str = PretrainConfig.class_momentum_dtype,
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
    weights, momentum = (table_bytes(end - begin, embedding_size, dtype) for dtype in (weights_dtype, momentum_dtype))
    if device == GPU:
        tile = min(end - begin, tiles.portable_tile_classes(batch_rows, embedding_size, tiles.GPU_TILE_BYTES))
        streaming = tile * (_TILE_LOGITS * batch_rows + _TILE_CLASS_ARRAYS * embedding_size) * _FLOAT
    else:
        threads = max(1, min(threads, (end - begin) // tiles.KERNEL_LEAST_CLASSES))
        tile = min(math.ceil((end - begin) / threads), tiles.kernel_tile_classes(embedding_size))
        sums = (
            _KERNEL_SUMS
            * tiles.padded(batch_rows, tiles.KERNEL_PANEL)
            * tiles.padded(embedding_size, tiles.KERNEL_COLUMNS)
            * _FLOAT
        )
        streaming = threads * (tile * tiles.kernel_class_bytes(embedding_size) + sums)
    return {
        "class weights": weights,
        "momentum of class weights": momentum,
        "tile workspace": streaming,
        "allocator": round(_ALLOCATOR_SHARE * (weights + momentum)),
    }


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
        _BATCH_ARRAYS * batch_rows * embedding_size * _FLOAT
        + labels * _LABEL_BYTES
        + math.ceil(labels / num_workers) * _OWN_LABEL_BYTES
    )


def peak_bytes(
    num_instances: int, num_workers: int, batch_rows: int, embedding_size: int, hard_negatives: int, **kept: Any
) -> int:
    """The most that a classifier by itself takes: while it steps, or while its Gaussian weights are drawn before that.

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
    drawing = _GAUSSIAN_COPIES * min(tiles.DRAWN_BLOCK_CLASSES, num_instances) * embedding_size * _FLOAT
    return sum(parts.values()) + max(stepping, drawing)


def search_bytes(num_instances: int, num_workers: int, embedding_size: int, hard_negatives: int) -> int:
    """What the search for hard negatives takes besides the state, which includes the lists in use.

    Args:
      num_instances: N.
      num_workers: T.
      embedding_size: D.
      hard_negatives: K.
    """
    lists = math.ceil(num_instances / num_workers) * hard_negatives * _FLOAT
    block = min(tiles.SEARCH_SIZES.candidates, num_instances) * embedding_size * _FLOAT
    return _SEARCH_LISTS * lists + _SEARCH_BLOCKS * block + _SEARCH_TILES * tiles.SEARCH_SIZES.tile_elements * _FLOAT


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


def bare_products_bytes(num_instances: int, num_workers: int, batch_rows: int, embedding_size: int) -> int:
    """The three matrix products of a worker's classes alone, with all logits; arguments as in `classifier_bytes`."""
    begin, end = partition.bounds(num_instances, num_workers, 0)
    logits = batch_rows * (end - begin) * _FLOAT
    # Class weights and their gradient; embeddings and theirs.
    factors = 2 * (end - begin + batch_rows) * embedding_size * _FLOAT
    return logits + factors + round(_ALLOCATOR_SHARE * (logits + factors))
