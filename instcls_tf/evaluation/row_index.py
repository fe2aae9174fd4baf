"""A run's class weights as an index of its own images: near-duplicates and outliers, without any other model.

Each image has a row, and images that look alike have similar ones. Rows are read from the checkpoint block by block:
neither the N x N similarities nor the N rows are ever in memory at once.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import tensorflow as tf

from instcls_tf import checkpoint, collectives
from instcls_tf.config import load_run
from instcls_tf.data.sources import Source, open_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation import workers

# Rows of a block, of queries and of candidates: [8192, 8192] similarities take 256 MB.
_BLOCK_ROWS = 8192
_ROWS = "classifier/rows"

Progress = Callable[[str, int, int], None]


def index_of_run(workdir: str, data_dir: str | None, threshold: float, listed: int) -> dict:
    """Near-duplicates and outliers of the dataset a run was trained on; all workers together.

    Args:
      workdir: the run's folder.
      data_dir: TFDS's folder; None for the run's own.
      threshold: cosine from which two images count as near-duplicates.
      listed: how many pairs and outliers are listed by name.

    Returns:
      `examples`, `near_duplicates` (`pairs`, their number, and `listed`, the most similar first, each with `first`,
      `second` and `cosine`) and `outliers` (the images least similar to their nearest neighbour: `image`, `nearest`,
      `cosine`). Images are named by their path, or by their id where they have none.

    Raises:
      UserError: no run, no checkpoint, or the dataset is not the one it was made for.
    """
    if not -1 <= threshold <= 1:
        raise UserError(f"--threshold={threshold}: must be a cosine, between -1 and 1")
    if listed < 1:
        raise UserError(f"--listed={listed}: must be at least 1")
    config = load_run(workdir)
    source = open_source(config.dataset, "train", data_dir or config.data_dir)
    prefix = checkpoint.latest(workdir)
    if prefix is None:
        raise UserError(f"--workdir={workdir}: the run has not saved a checkpoint yet")
    total = num_rows(prefix)
    if total != source.num_instances:
        raise UserError(f"{prefix}: was made for {total} instances, the dataset has {source.num_instances} now")
    progress = workers.start(config.seed)
    cosines, places = nearest_others(prefix, progress)
    progress.close()
    return {"examples": total, **_lists(source, cosines, places, threshold, listed)}


def _lists(source: Source, cosines: np.ndarray, places: np.ndarray, threshold: float, listed: int) -> dict:
    alike = np.flatnonzero(cosines >= threshold)
    pairs = {(min(i, j), max(i, j)): c for i, j, c in zip(alike, places[alike], cosines[alike])}
    ranked = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
    lonely = np.argsort(cosines, kind="stable")[:listed]
    return {
        "near_duplicates": {
            "pairs": len(pairs),
            "listed": [
                {"first": _name(source, i), "second": _name(source, j), "cosine": round(float(pairs[i, j]), 4)}
                for i, j in ranked[:listed]
            ],
        },
        "outliers": [
            {
                "image": _name(source, i),
                "nearest": _name(source, places[i]),
                "cosine": round(float(cosines[i]), 4),
            }
            for i in lonely
        ],
    }


def _name(source: Source, instance_id: int) -> str | int:
    return source.paths[instance_id] if hasattr(source, "paths") else int(instance_id)


def num_rows(prefix: str) -> int:
    """N of a checkpoint."""
    return tf.train.load_checkpoint(prefix).get_variable_to_shape_map()[_ROWS][0]


def read_rows(prefix: str, begin: int, end: int) -> tf.Tensor:
    """The class weights `begin` to `end` of a checkpoint, `[end - begin, D]`; nothing else is read."""
    shape = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()[_ROWS]
    spec = f"{shape[0]} {shape[1]} {begin},{end - begin}:-"
    (rows,) = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=[_ROWS], shape_and_slices=[spec], dtypes=[tf.float32])
    return rows


def nearest_others(prefix: str, progress: Progress = lambda stage, done, total: None) -> tuple[np.ndarray, np.ndarray]:
    """For every class weight of a checkpoint the most similar other one.

    The workers share out the queries; each gets the whole answer.

    Args:
      prefix: the checkpoint.
      progress: called with a stage's name, blocks done and blocks in all.

    Returns:
      Cosines `[N]` float32 and ids `[N]` int32; of equally similar ones the lowest id.
    """
    total = num_rows(prefix)
    begin, end = collectives.own_bounds(total)
    best, places = np.full([end - begin], -np.inf, np.float32), np.zeros([end - begin], np.int32)
    starts = range(begin, end, _BLOCK_ROWS)
    for done, start in enumerate(starts, start=1):
        queries = _directions(prefix, start, min(start + _BLOCK_ROWS, end))
        own = slice(start - begin, start - begin + len(queries))
        for first in range(0, total, _BLOCK_ROWS):
            found, place = _best_of_block(
                queries, _directions(prefix, first, min(first + _BLOCK_ROWS, total)), start - first
            )
            better = found > best[own]
            best[own], places[own] = np.where(better, found, best[own]), np.where(better, place + first, places[own])
        progress("nearest rows", done, len(starts))
    gathered = [collectives.all_gather(tf.constant(part), "nearest_others").numpy() for part in (best, places)]
    return gathered[0], gathered[1]


def _directions(prefix: str, begin: int, end: int) -> tf.Tensor:
    return tf.math.l2_normalize(read_rows(prefix, begin, end), axis=1)


def _best_of_block(queries: tf.Tensor, block: tf.Tensor, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """The most similar row of a block for each query; query q is the same image as row q + offset."""
    cosines = tf.matmul(queries, block, transpose_b=True)
    places = np.arange(len(queries)) + offset
    itself = np.flatnonzero((places >= 0) & (places < len(block)))
    if len(itself):
        cells = np.stack([itself, places[itself]], axis=1)
        cosines = tf.tensor_scatter_nd_update(cosines, cells, tf.fill([len(itself)], -np.inf))
    return tf.reduce_max(cosines, axis=1).numpy(), tf.argmax(cosines, axis=1).numpy()
