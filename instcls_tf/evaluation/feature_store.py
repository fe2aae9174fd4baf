"""Features on disk: computed once per checkpoint and dataset, read by every evaluation, written for other tools.

A cache entry is a folder `WORKDIR/features/SPLIT-KEY` of plain `.npy` files; KEY is a hash of the encoder's weights, of
what the dataset consists of, and of what the encoder sees of an image. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf import files
from instcls_tf.checks import require_value
from instcls_tf.data.mapped_files import new_npy
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.encoder.networks import encoder_digest
from instcls_tf.errors import UserError, shown
from instcls_tf.evaluation import features, tables
from instcls_tf.evaluation.recipes import BACKBONE, CSV, KINDS, NPY, NPZ, OUTPUT_FORMATS, PARQUET
from instcls_tf.evaluation.unreadable import tell_of_unreadable
from instcls_tf.progress import Progress

_ARRAYS = (*KINDS, "labels", "ids")
_WRITERS: dict[str, Any] = {NPZ: np.savez, CSV: tables.write_csv, PARQUET: tables.write_parquet}
# A file of --output=FOLDER, and the most that an .npz holds (it is read as a whole).
_SHARD_BYTES, _LARGEST_NPZ_BYTES = 2**30, 2**32
# So many of the images that could not be read are tried once more before features are taken for complete.
_TRIED_AGAIN = 64


class Stored(NamedTuple):
    """A dataset seen by an encoder, images in the order of their ids; arrays may be files mapped into memory."""

    backbone: np.ndarray  # [N, F] float32
    projection: np.ndarray  # [N, D] float32
    labels: np.ndarray  # [N] int32, -1 if unknown
    ids: np.ndarray  # [N] int32; not 0 .. N-1 if the source left out files that it could not read

    def of_kind(self, kind: str, dataset: str) -> features.Features:
        """One of `KINDS` with the labels.

        Raises:
          UserError: an image of `dataset` has no label.
        """
        if not len(self.labels):
            raise UserError(f"--dataset={dataset}: no image of the split can be read")
        if self.labels.min(initial=0) < 0:
            unlabelled = int(self.ids[np.argmin(self.labels)])
            raise UserError(f"--dataset={dataset}: image {unlabelled} of the split has no label")
        return features.Features(getattr(self, kind), self.labels)


def stored_features(
    workdir: str,
    encoder: tf.keras.Model,
    source: Source,
    split: str,
    *,
    image_size: int,
    center_crop_fraction: float,
    progress: Progress,
) -> Stored:
    """The features of a dataset, from the cache of a run or else computed into it; all workers together.

    Of images that cannot be read there are none, which is said whenever features are asked for.

    Args:
      workdir: the run's folder, which all workers share.
      encoder: a model of `networks.build_encoder`.
      source: the images.
      split: its name, for people who look into the cache.
      image_size: pixels.
      center_crop_fraction: what is seen of an image, see `pipeline.inference_batches`.
      progress: of the extraction.
    """
    seen = f"{encoder_digest(encoder)} {source.content_digest()} {image_size} {center_crop_fraction}"
    key = hashlib.sha256(seen.encode()).hexdigest()[:16]
    folder = os.path.join(workdir, "features", f"{split.replace(os.sep, '_')}-{key}")
    if not workers.rank_0_says(_has_all(folder, source), "has_features"):
        settings = {"image_size": image_size, "center_crop_fraction": center_crop_fraction}
        _compute(folder, encoder, source, settings, progress)
    files.look_again(os.path.abspath(folder))  # rank 0 has made or seen it, perhaps on another machine
    stored = _open_folder(folder)
    tell_of_unreadable(source, stored.ids, progress)
    return stored


def _has_all(folder: str, source: Source) -> bool:
    """Whether there are features of all images that can be read; some of the others may be readable by now."""
    if not os.path.isdir(folder):
        return False
    missing = np.setdiff1d(np.arange(source.num_instances), _read_shards(folder, "ids"))
    if not source.random_access or collectives.rank() != 0:
        return True
    load = source.loader()
    return not any(tf.size(load(tf.constant(i, tf.int64))) for i in missing[:_TRIED_AGAIN].tolist())


def _compute(folder: str, encoder: tf.keras.Model, source: Source, settings: dict, progress: Progress) -> None:
    """Writes a cache entry, which appears when it is complete. Rank 0 writes what all have computed."""
    backbone, projection = encoder.get_layer("backbone"), encoder.get_layer("projection")
    both = tf.keras.Model(backbone.input, [backbone.output, projection(backbone.output)])
    writer = _Writer(folder, source.num_instances) if collectives.rank() == 0 else None
    try:
        for batch in features.stream(both, source, **settings, progress=progress):
            if writer:
                writer.write(batch)
        if writer:
            writer.close()
    except BaseException:  # an interruption, or a file that is damaged: what is there is of no use
        if writer:
            writer.abandon()
        raise
    collectives.barrier()


class _Writer:
    """Collects batches of both kinds of features into files, in the order of ids."""

    def __init__(self, folder: str, num_instances: int):
        self._folder, self._num_instances = folder, num_instances
        parent = os.path.dirname(folder)
        try:
            os.makedirs(parent, exist_ok=True)
            self._scratch = tempfile.mkdtemp(dir=parent, prefix=files.scratch_prefix(parent))
        except OSError as error:
            raise UserError(f"{parent}: cannot write features there ({error.strerror})") from error
        self._arrays: dict[str, np.memmap] = {}
        self._labels = np.full([num_instances], -1, np.int32)
        self._seen = np.zeros([num_instances], bool)

    def write(self, batch: features.Batch) -> None:
        for kind, rows in zip(KINDS, batch.outputs):
            if kind not in self._arrays:
                with self._file(kind) as path:
                    self._arrays[kind] = new_npy(path, (self._num_instances, rows.shape[1]))
            self._arrays[kind][batch.ids] = rows
        self._labels[batch.ids], self._seen[batch.ids] = batch.labels, True

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[str]:
        """Where an array is written until all of them are there."""
        try:
            yield os.path.join(self._scratch, f"{name}.npy")
        except OSError as error:  # of NumPy without a `strerror`
            path = os.path.join(self._folder, f"{name}.npy")
            raise UserError(f"{shown(path)}: cannot write these features ({error.strerror or error})") from error

    def abandon(self) -> None:
        """Removes what was written."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def close(self) -> None:
        ids = np.flatnonzero(self._seen).astype(np.int32)
        for kind, array in self._arrays.items():
            with self._file(kind) as path:
                array.flush()
                if len(ids) < self._num_instances:  # the source left out images that it could not read
                    np.save(path, np.array(array[ids]))
        for name, values in (("labels", self._labels[ids]), ("ids", ids)):
            with self._file(name) as path:
                np.save(path, values)
        os.chmod(self._scratch, 0o755)  # mkdtemp's folders are private
        try:
            if os.path.isdir(self._folder):
                self._take_place_of(len(_read_shards(self._folder, "ids")) < len(ids))
            else:
                os.replace(self._scratch, self._folder)
        except OSError:  # another command was faster
            shutil.rmtree(self._scratch)

    def _take_place_of(self, has_fewer: bool) -> None:
        """In the place of an entry that is there and has fewer images; those who read it keep what they have opened."""
        if has_fewer:
            shutil.rmtree(self._folder)
            os.replace(self._scratch, self._folder)
        else:
            shutil.rmtree(self._scratch)


def _open_folder(folder: str) -> Stored:
    return Stored(*(_read_shards(folder, name) for name in _ARRAYS))


def _read_shards(folder: str, name: str) -> np.ndarray:
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), f"{name}*.npy")))
    if not paths:
        raise UserError(f"{folder}: has no {name}.npy")
    parts = [_load(path, mmap_mode="r") for path in paths]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _load(path: str, mmap_mode: Literal["r"] | None = None) -> Any:
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: holds pickled objects or is no NumPy file, wanted plain arrays") from error
    except Exception as error:  # of NumPy and zipfile, about a file that is not as it was written
        raise UserError(f"{path}: cannot read features ({getattr(error, 'strerror', None) or error})") from error


def load_features(path: str, kind: str = BACKBONE) -> features.Features:
    """Features that `extract`, or another tool, wrote: `PATH.npz`, or a folder of `.npy` files.

    Args:
      path: an `.npz` with the arrays `backbone` and/or `projection` `[N, F]` and `labels` `[N]`, or a folder of
        `.npy` files of those names.
      kind: which of `KINDS`.

    Raises:
      UserError: no such file, pickled objects inside, an array missing or of a wrong shape.
    """
    if os.path.isdir(path):
        vectors, labels = (_read_shards(path, name) for name in (kind, "labels"))
    else:
        file = _load(path)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: is no .npz file")
        for name in (kind, "labels"):
            if name not in file.files:
                raise UserError(f"{path}: has no array {name!r}")
        try:
            vectors, labels = file[kind], file["labels"]
        except ValueError as error:
            raise UserError(f"{path}: holds pickled objects, wanted plain arrays") from error
        except Exception as error:  # of zipfile and zlib
            raise UserError(f"{path}: cannot read features ({error})") from error
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: wanted {kind} [N, F] and integer labels [N], found {vectors.shape} and {labels.shape}"
        )
    if len(labels) == 0 or labels.min() < 0:
        raise UserError(f"{path}: has images without labels" if len(labels) else f"{path}: holds no images")
    return features.Features(vectors, labels)


def refuse_occupied(output: str) -> None:
    """Raises UserError if there is something where features are to be written."""
    if files.is_there(output, follow_links=False):
        raise UserError(f"--output={output}: exists already, name a new file or folder")


def format_of(output: str, wanted: str | None = None) -> str:
    """One of `OUTPUT_FORMATS`: the wanted one, or else as the name ends, a folder of `.npy` files for any other.

    Raises:
      UserError: there is no such format, or its package is missing.
    """
    endings = (NPZ, CSV, PARQUET)
    ending = next((name for name in endings if output.endswith(f".{name}")), NPY)
    chosen = ending if wanted is None else wanted
    require_value("format", chosen, chosen in OUTPUT_FORMATS, "one of " + ", ".join(OUTPUT_FORMATS))
    if chosen == PARQUET and importlib.util.find_spec("pyarrow") is None:
        raise UserError("--format=parquet: needs the package pyarrow: pip install 'instcls-tf[find]'")
    return chosen


def write_output(stored: Stored, output: str, paths: Sequence[str], wanted: str | None = None) -> list[str]:
    """Writes features for other tools; the files appear when they are complete.

    Args:
      stored: the features.
      output: the file, or a new folder for `.npy` files of at most 1 GiB (`backbone-00000-of-00004.npy`).
      paths: the images' names, `[N]`.
      wanted: the format, see `format_of`.

    Returns:
      The names of the files.

    Raises:
      UserError: `output` exists, is too large for one file, or cannot be written.
    """
    refuse_occupied(output)
    chosen = format_of(output, wanted)
    arrays, text = stored._asdict(), np.dtype(("U", max(map(len, paths), default=1) or 1))
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        if chosen != NPY:
            size = sum(array.nbytes for array in arrays.values()) + len(paths) * text.itemsize
            if chosen == NPZ and size > _LARGEST_NPZ_BYTES:
                raise UserError(f"--output={output}: too large for one file, name a folder (without .npz)")
            with files.whole_file(output) as file:
                _WRITERS[chosen](file, **arrays, paths=np.array(paths, text) if chosen == NPZ else paths)
            return [output]
        with files.whole_folder(output) as folder:
            for name, array in arrays.items():
                _write_shards(folder, name, array, array.dtype, array.nbytes)
            _write_shards(folder, "paths", paths, text, len(paths) * text.itemsize)
    except OSError as error:  # of NumPy and pyarrow without a `strerror`
        raise UserError(f"--output={output}: cannot be written ({error.strerror or error})") from error
    return sorted(os.path.join(output, name) for name in os.listdir(output))


def _write_shards(folder: str, name: str, rows: np.ndarray | Sequence[str], dtype: np.dtype, size: int) -> None:
    """Of text, which takes 4 bytes times the longest, one file at a time is in memory."""
    count = max(1, -(-size // _SHARD_BYTES))
    length = -(-len(rows) // count)
    for shard in range(count):
        suffix = "" if count == 1 else f"-{shard:05d}-of-{count:05d}"
        part = np.asarray(rows[shard * length : (shard + 1) * length], dtype)
        np.save(os.path.join(folder, f"{name}{suffix}.npy"), part)
