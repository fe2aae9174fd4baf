"""What a gallery takes from a run: features, class weights, lists of hard negatives, thumbnails."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf import files
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.labelled import take
from instcls_tf.data.mapped_files import new_pixels
from instcls_tf.data.names import names_of
from instcls_tf.data.source import Source
from instcls_tf.errors import UserError
from instcls_tf.methods.class_tables import read_rows
from instcls_tf.methods.instance import CLASS_WEIGHTS_KEY, HARD_NEGATIVES_KEY
from instcls_tf.progress import OnProgress
from instcls_tf.run import checkpoint
from instcls_tf.run.parts import spec_of_rows

_BLOCK_ROWS = 65536
_BATCH = 256


class Shown(NamedTuple):
    """Which images of a source are shown, n of them."""

    source: Source
    rows: np.ndarray  # [n] their places among the features, ascending
    ids: np.ndarray  # [n] their instance ids

    def names(self) -> list[str]:
        """Paths, or ids where the images have none."""
        return names_of(self.source, self.ids)


def some_of(source: Source, ids: np.ndarray, most: int) -> Shown:
    """At most `most` images, evenly spread over those that have features.

    Args:
      source: the images.
      ids: `[N]`, of those that could be read.
      most: how many.
    """
    rows = np.arange(len(ids)) if len(ids) <= most else np.linspace(0, len(ids) - 1, most).round().astype(np.int64)
    return Shown(source, rows, np.asarray(ids)[rows])


def known_ids(workdir: str, config: PretrainConfig, ids: np.ndarray) -> np.ndarray:
    """Those of `ids` that have a class in the run's newest checkpoint; all where the method has no classes."""
    if config.method != INSTANCE:
        return ids
    return ids[ids < _num_classes(checkpoint.newest(workdir))]


def _num_classes(prefix: str) -> int:
    return checkpoint.shapes_of(prefix)[CLASS_WEIGHTS_KEY][0]


def class_weights(prefix: str, shown: Shown) -> np.ndarray:
    """Class weights of the images that are shown, `[n, D]` float32.

    Raises:
      UserError: the checkpoint was made for other images.
    """
    total = _num_classes(prefix)
    if total > shown.source.num_instances:
        raise UserError(f"{prefix}: was made for {total} instances, the dataset has {shown.source.num_instances} now")
    blocks = range(0, total, _BLOCK_ROWS)
    rows = ((begin, read_rows(prefix, CLASS_WEIGHTS_KEY, begin, min(begin + _BLOCK_ROWS, total))) for begin in blocks)
    return np.concatenate([_wanted(block, begin, shown.ids) for begin, block in rows])


def hard_negatives(prefix: str, shown: Shown, most: int) -> np.ndarray | None:
    """The run's own lists, as a checkpoint in mid-epoch holds them; None at the end of an epoch, which needs none.

    Returns:
      `[n, <= most]` int32 places among the images that are shown; -1 for others.
    """
    if not checkpoint.holds(prefix, HARD_NEGATIVES_KEY):
        return None
    place = np.full([shown.source.num_instances], -1, np.int32)
    place[shown.ids] = np.arange(len(shown.ids), dtype=np.int32)
    return np.concatenate([place[rows[:, :most]] for rows in _lists_of(prefix, shown.ids)])


def _lists_of(prefix: str, ids: np.ndarray) -> Iterator[np.ndarray]:
    """Some lists of a checkpoint, block by block; `ids` ascend."""
    total, k = checkpoint.shapes_of(prefix)[HARD_NEGATIVES_KEY]
    for begin in range(0, total, _BLOCK_ROWS):
        spec = spec_of_rows([total, k], begin, min(begin + _BLOCK_ROWS, total))
        about = {"tensor_names": [HARD_NEGATIVES_KEY], "shape_and_slices": [spec], "dtypes": [tf.int32]}
        yield _wanted(tf.raw_ops.RestoreV2(prefix=prefix, **about)[0], begin, ids)


def _wanted(block: tf.Tensor, begin: int, ids: np.ndarray) -> np.ndarray:
    """Of a block of rows from `begin` on those of `ids`."""
    return tf.gather(block, ids[(ids >= begin) & (ids < begin + len(block))] - begin).numpy()


@contextmanager
def thumbnails_of(
    shown: Shown, size: int, center_crop_fraction: float, folder: str, progress: OnProgress
) -> Iterator[np.ndarray]:
    """What a judgement sees of the images that are shown, `[n, size, size, 3]` uint8.

    A file mapped into memory, which is gone after the block: n may be large.

    Args:
      shown: the images.
      size: pixels a side.
      center_crop_fraction: see `pipeline.inference_batches`.
      folder: where the file may lie.
      progress: called with a stage's name, batches done and batches in all.

    Raises:
      UserError: there is no room for the file.
    """
    source = shown.source
    # Images that are read at random: those alone. A stream: all of them, and the others are passed over.
    chosen = take(source, shown.ids) if source.random_access and len(shown.ids) < source.num_instances else source
    ids = np.arange(len(shown.ids)) if chosen is not source else shown.ids
    with tempfile.TemporaryDirectory(dir=folder, prefix=files.scratch_prefix(folder)) as scratch:
        shape = (len(ids), size, size, 3)
        pixels = _reserved(scratch, shape)
        batches = pipeline.inference_batches(
            chosen, image_size=size, batch_size=_BATCH, center_crop_fraction=center_crop_fraction
        )
        for done, (images, own_ids, _) in enumerate(batches, start=1):
            _put(pixels, ids, images.numpy(), own_ids.numpy())
            progress("thumbnails", done, len(batches))
        yield pixels


def _reserved(scratch: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return new_pixels(os.path.join(scratch, "thumbnails"), shape)
    except OSError as error:
        where, size = os.path.dirname(scratch), f"{math.prod(shape) / 1e6:.0f} MB"
        raise UserError(f"{where}: cannot write {size} of thumbnails there ({error.strerror})") from error


def _put(pixels: np.ndarray, ids: np.ndarray, images: np.ndarray, own_ids: np.ndarray) -> None:
    """Puts images to their places; what is not shown, or could not be read (-1), has none."""
    places = np.searchsorted(ids, own_ids).clip(max=len(ids) - 1)
    known = (own_ids >= 0) & (ids[places] == own_ids)
    pixels[places[known]] = images[known]
