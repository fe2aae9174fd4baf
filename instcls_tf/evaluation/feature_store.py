"""Features on disk: computed once per checkpoint and dataset, read by every evaluation, written for other tools.

A cache entry is a folder `WORKDIR/features/SPLIT-KEY` of plain `.npy` files; KEY is a hash of the encoder's weights, of
what the dataset consists of, and of the image size. Nothing is ever unpickled.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf import collectives
from instcls_tf.data.sources import Source
from instcls_tf.errors import UserError
from instcls_tf.evaluation import features, workers
from instcls_tf.run_log import Progress

KINDS = ("backbone", "projection")
_ARRAYS = (*KINDS, "labels", "ids")
# A file of --output=FOLDER, and the most that an .npz holds (it is read as a whole).
_SHARD_BYTES, _LARGEST_NPZ_BYTES = 2**30, 2**32


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
        if self.labels.min(initial=0) < 0:
            unlabelled = int(self.ids[np.argmin(self.labels)])
            raise UserError(f"--dataset={dataset}: image {unlabelled} of the split has no label")
        return features.Features(getattr(self, kind), self.labels)


def encoder_digest(encoder: tf.keras.Model) -> str:
    """A hash of all weights; the same for the same checkpoint, whatever folder it lies in."""
    digest = hashlib.sha256()
    for variable in encoder.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def source_digest(source: Source) -> str:
    """A hash of what a source consists of: another file, another size or time of a file change it."""
    digest = hashlib.sha256(f"{source.name} {source.num_instances} {source.class_names}".encode())
    if hasattr(source, "builder"):
        info = source.builder.info
        digest.update(f"{info.full_name} {source.split} {info.splits[source.split].shard_lengths}".encode())
    elif hasattr(source, "paths"):
        for path in source.paths:
            digest.update(os.fsencode(path) + _state(os.path.join(source.root, path)))
    else:
        digest.update(np.ascontiguousarray(source.images).tobytes())
    return digest.hexdigest()


def _state(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:  # a broken link is a bad file, which has no features
        return b" -\n"
    return f" {status.st_size} {status.st_mtime_ns}\n".encode()


def stored_features(
    workdir: str, encoder: tf.keras.Model, source: Source, split: str, *, image_size: int, progress: Progress
) -> Stored:
    """The features of a dataset, from the cache of a run or else computed into it; all workers together.

    Args:
      workdir: the run's folder, which all workers share.
      encoder: a model of `networks.build_encoder`.
      source: the images.
      split: its name, for people who look into the cache.
      image_size: pixels.
      progress: of the extraction.
    """
    key = hashlib.sha256(f"{encoder_digest(encoder)} {source_digest(source)} {image_size}".encode()).hexdigest()[:16]
    folder = os.path.join(workdir, "features", f"{split.replace(os.sep, '_')}-{key}")
    if not workers.rank_0_says(os.path.isdir(folder), "has_features"):
        _compute(folder, encoder, source, image_size, progress)
    return _open_folder(folder)


def _compute(folder: str, encoder: tf.keras.Model, source: Source, image_size: int, progress: Progress) -> None:
    """Writes a cache entry, which appears when it is complete. Rank 0 writes what all have computed."""
    writer = _Writer(folder, source.num_instances) if collectives.rank() == 0 else None
    backbone, projection = encoder.get_layer("backbone"), encoder.get_layer("projection")
    both = tf.keras.Model(backbone.input, [backbone.output, projection(backbone.output)])
    for batch in features.stream(both, source, image_size=image_size, progress=progress):
        if writer:
            writer.write(batch)
    if writer:
        writer.close()
    collectives.barrier()


class _Writer:
    """Collects batches of both kinds of features into files, in the order of ids."""

    def __init__(self, folder: str, num_instances: int):
        self._folder, self._num_instances = folder, num_instances
        try:
            os.makedirs(os.path.dirname(folder), exist_ok=True)
            self._scratch = tempfile.mkdtemp(dir=os.path.dirname(folder), prefix=".writing-")
        except OSError as error:
            raise UserError(f"{os.path.dirname(folder)}: cannot write features there ({error.strerror})") from error
        self._arrays = {}
        self._labels = np.full([num_instances], -1, np.int32)
        self._seen = np.zeros([num_instances], bool)

    def write(self, batch: features.Batch) -> None:
        for kind, rows in zip(KINDS, batch.outputs):
            if kind not in self._arrays:
                path = os.path.join(self._scratch, f"{kind}.npy")
                shape = (self._num_instances, rows.shape[1])
                self._arrays[kind] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            self._arrays[kind][batch.ids] = rows
        self._labels[batch.ids], self._seen[batch.ids] = batch.labels, True

    def close(self) -> None:
        ids = np.flatnonzero(self._seen).astype(np.int32)
        for kind, array in self._arrays.items():
            array.flush()
            if len(ids) < self._num_instances:  # the source left out images that it could not read
                np.save(os.path.join(self._scratch, f"{kind}.npy"), np.array(array[ids]))
        np.save(os.path.join(self._scratch, "labels.npy"), self._labels[ids])
        np.save(os.path.join(self._scratch, "ids.npy"), ids)
        os.chmod(self._scratch, 0o755)  # mkdtemp's folders are private
        try:
            os.replace(self._scratch, self._folder)
        except OSError:  # another command was faster
            shutil.rmtree(self._scratch)


def _open_folder(folder: str) -> Stored:
    return Stored(*(_read_shards(folder, name) for name in _ARRAYS))


def _read_shards(folder: str, name: str) -> np.ndarray:
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), f"{name}*.npy")))
    if not paths:
        raise UserError(f"{folder}: has no {name}.npy")
    parts = [_load(path, mmap_mode="r") for path in paths]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _load(path: str, mmap_mode: str | None = None):
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: holds pickled objects or is no NumPy file, wanted plain arrays") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot read features ({getattr(error, 'strerror', None) or error})") from error


def load_features(path: str, kind: str = "backbone") -> features.Features:
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
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: wanted {kind} [N, F] and integer labels [N], found {vectors.shape} and {labels.shape}"
        )
    if len(labels) == 0 or labels.min() < 0:
        raise UserError(f"{path}: has images without labels" if len(labels) else f"{path}: holds no images")
    return features.Features(vectors, labels)


def refuse_occupied(output: str) -> None:
    """Raises UserError if there is something where features are to be written."""
    if os.path.lexists(output):
        raise UserError(f"--output={output}: exists already, name a new file or folder")


def write_output(stored: Stored, output: str) -> list[str]:
    """Writes features for other tools; the files appear when they are complete.

    Args:
      stored: the features.
      output: `PATH.npz`, or a new folder for `.npy` files of at most 1 GiB (`backbone-00000-of-00004.npy`).

    Returns:
      The names of the files.

    Raises:
      UserError: `output` exists, is too large for one file, or cannot be written.
    """
    refuse_occupied(output)
    arrays = stored._asdict()
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        if output.endswith(".npz"):
            if sum(array.nbytes for array in arrays.values()) > _LARGEST_NPZ_BYTES:
                raise UserError(f"--output={output}: too large for one file, name a folder (without .npz)")
            with open(output + ".new", "wb") as file:
                np.savez(file, **arrays)
            os.replace(output + ".new", output)
            return [output]
        scratch = tempfile.mkdtemp(dir=os.path.dirname(os.path.abspath(output)), prefix=".writing-")
        for name, array in arrays.items():
            _write_shards(scratch, name, array)
        os.chmod(scratch, 0o755)
        os.replace(scratch, output)
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error.strerror})") from error
    return sorted(os.path.join(output, name) for name in os.listdir(output))


def _write_shards(folder: str, name: str, array: np.ndarray) -> None:
    count = max(1, -(-array.nbytes // _SHARD_BYTES))
    rows = -(-len(array) // count)
    for shard in range(count):
        suffix = "" if count == 1 else f"-{shard:05d}-of-{count:05d}"
        np.save(os.path.join(folder, f"{name}{suffix}.npy"), array[shard * rows : (shard + 1) * rows])
