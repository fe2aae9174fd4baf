"""A run's class weights as an index of its own images: near-duplicates and outliers, without any other model.

Each image has a class weight, and images that look alike have similar ones. Weights are read from the checkpoint block
by block: neither the N x N similarities nor the N weights are ever in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.checks import require_value
from instcls_tf.classifier.directions import unit_vectors
from instcls_tf.data.names import names_of
from instcls_tf.data.source import Source, notes_of
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError
from instcls_tf.methods.class_tables import read_rows
from instcls_tf.methods.instance import CLASS_WEIGHTS_KEY as KEY
from instcls_tf.progress import OnProgress, no_progress
from instcls_tf.run import checkpoint, checkpoint_choice
from instcls_tf.run.workdir import load_classification

# Classes of a block, of queries and of candidates: [8192, 8192] similarities take 256 MB.
_BLOCK_CLASSES = 8192


class WeightNeighbours(NamedTuple):
    """Near-duplicates and outliers of a dataset by their instance ids, the most telling first."""

    source: Source
    cosines: np.ndarray  # [N] float32, to the most similar other image
    nearest: np.ndarray  # [N] int32, which one that is
    pairs: list[tuple[int, int]]
    outliers: list[int]
    step: int  # of the run

    def summary(self, listed: int) -> dict:
        """What `similarity --index` answers, with the first `listed` pairs and outliers by name.

        Returns:
          `examples`, `near_duplicates` (`pairs`, their number, and `listed`, each with `first`, `second` and `cosine`)
          and `outliers` (`image`, `nearest`, `cosine`). Images are named by their path, or by their id where they have
          none.
        """
        name_of = self._name_of(listed)
        pairs = [{"first": name_of(i), "second": name_of(j), **self._cosine(i, j)} for i, j in self.pairs[:listed]]
        outliers = [
            {"image": name_of(i), "nearest": name_of(self.nearest[i]), **self._cosine(i, self.nearest[i])}
            for i in self.outliers[:listed]
        ]
        about = {"pairs": len(self.pairs), "listed": pairs}
        return {"examples": len(self.cosines), "near_duplicates": about, "outliers": outliers}

    def _name_of(self, listed: int) -> Callable[[int], str | int]:
        if self.source.random_access:
            return self.source.name_of
        ids = {i for pair in self.pairs[:listed] for i in pair}.union(
            *((i, int(self.nearest[i])) for i in self.outliers)
        )
        return dict(zip(ids, names_of(self.source, np.array([*ids])))).__getitem__

    def _cosine(self, i: int, j: int) -> dict[str, float]:
        # One of a pair is the other's nearest, not always both ways.
        return {"cosine": round(float(self.cosines[i] if self.nearest[i] == j else self.cosines[j]), 4)}


def weight_neighbours_of_run(workdir: str, data_dir: str | None, threshold: float, listed: int) -> WeightNeighbours:
    """Near-duplicates and outliers of the dataset a run was trained on; all workers together.

    Args:
      workdir: the run's folder.
      data_dir: TFDS's folder; None for the run's own.
      threshold: cosine from which two images count as near-duplicates.
      listed: how many outliers are wanted, and pairs to be named.

    Raises:
      UserError: no run, no checkpoint, or the dataset is not the one it was made for.
    """
    require_value("threshold", threshold, -1 <= threshold <= 1, "a cosine, between -1 and 1")
    require_value("listed", listed, listed >= 1, "at least 1")
    config = load_classification(workdir)
    source = open_training_source(config, data_dir, workdir)
    prefix = checkpoint.newest(workdir)
    refuse_other_number(prefix, source)
    progress = workers.start(config.seed, notes_of(source))
    cosines, places = nearest_others(prefix, progress)
    progress.close()
    alike = np.flatnonzero(cosines >= threshold).tolist()
    pairs = {(min(i, int(places[i])), max(i, int(places[i]))): -float(cosines[i]) for i in alike}
    ranked = sorted(pairs, key=lambda pair: (pairs[pair], pair))
    outliers = np.argsort(cosines, kind="stable")[:listed].tolist()
    return WeightNeighbours(source, cosines, places, ranked, outliers, checkpoint_choice.step_of(prefix))


def num_classes(prefix: str) -> int:
    """N of a checkpoint."""
    return checkpoint.shapes_of(prefix)[KEY][0]


def refuse_other_number(prefix: str, source: Source) -> None:
    """Refuses images of which a checkpoint has not one class each.

    Raises:
      UserError: their number has changed since.
    """
    total = num_classes(prefix)
    if total != source.num_instances:
        raise UserError(f"{prefix}: was made for {total} instances, the dataset has {source.num_instances} now")


def read_weights(prefix: str, begin: int, end: int) -> tf.Tensor:
    """The class weights `begin` to `end` of a checkpoint, `[end - begin, D]` float32; nothing else is read."""
    return read_rows(prefix, KEY, begin, end)


def nearest_others(prefix: str, progress: OnProgress = no_progress) -> tuple[np.ndarray, np.ndarray]:
    """For every class weight of a checkpoint the most similar other one.

    The workers share out the queries; each gets the whole answer.

    Args:
      prefix: the checkpoint.
      progress: called with a stage's name, blocks done and blocks in all.

    Returns:
      Cosines `[N]` float32 and ids `[N]` int32; of equally similar ones the lowest id.
    """
    total = num_classes(prefix)
    begin, end = collectives.own_bounds(total)
    best, places = np.full([end - begin], -np.inf, np.float32), np.zeros([end - begin], np.int32)
    starts = range(begin, end, _BLOCK_CLASSES)
    for done, start in enumerate(starts, start=1):
        queries = _directions(prefix, start, min(start + _BLOCK_CLASSES, end))
        own = slice(start - begin, start - begin + len(queries))
        for first in range(0, total, _BLOCK_CLASSES):
            found, place = _best_of_block(
                queries, _directions(prefix, first, min(first + _BLOCK_CLASSES, total)), start - first
            )
            better = found > best[own]
            best[own], places[own] = np.where(better, found, best[own]), np.where(better, place + first, places[own])
        progress("nearest class weights", done, len(starts))
    gathered = [collectives.all_gather(tf.constant(part), "nearest_others").numpy() for part in (best, places)]
    return gathered[0], gathered[1]


def _directions(prefix: str, begin: int, end: int) -> tf.Tensor:
    return unit_vectors(read_weights(prefix, begin, end))


def _best_of_block(queries: tf.Tensor, block: tf.Tensor, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """The most similar candidate of a block for each query; query q is the same class as candidate q + offset."""
    cosines = tf.matmul(queries, block, transpose_b=True)
    places = np.arange(len(queries)) + offset
    itself = np.flatnonzero((places >= 0) & (places < len(block)))
    if len(itself):
        cells = np.stack([itself, places[itself]], axis=1)
        cosines = tf.tensor_scatter_nd_update(cosines, cells, tf.fill([len(itself)], -np.inf))
    return tf.reduce_max(cosines, axis=1).numpy(), tf.argmax(cosines, axis=1).numpy()
