"""Writes a folder of images as TFRecord shards, for file systems that are slow with many small files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Callable

import numpy as np

from instcls_tf import files
from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.data import folder, records
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.source import notes_of
from instcls_tf.data.tfds_builder import refuse_path
from instcls_tf.errors import UserError, shown, some_of
from instcls_tf.progress import OnProgress, no_progress


def prepare(
    dataset: str,
    output: str,
    shard_megabytes: int,
    progress: OnProgress = no_progress,
    say: Callable[[str], None] = lambda text: None,
    max_bad_fraction: float = PretrainConfig.max_bad_fraction,
) -> dict[str, int]:
    """Copies the images of a folder, with their names, ids and labels, into shards and writes an index of them.

    Records lie in a random order, always the same: streams read neighbours together, and those of a folder per class
    would be of one class. Files that cannot be read become records without bytes.

    Args:
      dataset: `folder:PATH`; its train and, if there are any, test and val splits are written.
      output: folder to write to; it must not hold an index already.
      shard_megabytes: size at which a new shard begins.
      progress: called with a stage's name, images done and images in all.
      say: called with a line about what is not in the folder's listing, if anything is left out, and about files that
        could not be read.
      max_bad_fraction: of the files of a split so many may be unreadable.

    Returns:
      Images per split.

    Raises:
      UserError: no folder, a split with class folders that the train split lacks, an output that holds something
        already or cannot be written, or more of the files of a split cannot be read than may be; shards that were
        written are removed then.
      MachineError: the file system fails, so that it is not known what is there.
    """
    if not dataset.startswith(folder.PREFIX):
        refuse_path(dataset)
        raise UserError(f"--dataset={dataset}: wanted folder:PATH")
    require_value("shard_megabytes", shard_megabytes, shard_megabytes >= 1, "at least 1")
    require_value("max_bad_fraction", max_bad_fraction, 0 <= max_bad_fraction <= 1, "0 to 1")
    index_path = os.path.join(output, records.INDEX_NAME)
    if files.is_there(index_path):
        raise UserError(f"--output={output}: holds prepared images already, name another folder")
    sources = dict(_splits(dataset))
    for source in sources.values():
        if source.unknown_classes:  # its labels would be lost for good
            raise UserError(f"--dataset={dataset}: {source.unknown_classes}")
    for note in notes_of(*sources.values()):
        say(note)
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output}: cannot make this folder ({error.strerror})") from error
    written: list[str] = []
    try:
        splits = {
            split: _write(source, output, split, shard_megabytes << 20, progress, written)
            for split, source in sources.items()
        }
        for split, source in sources.items():
            _tell_unreadable(source, split, say, max_bad_fraction)
    except BaseException:
        for path in written:
            with contextlib.suppress(OSError):
                os.remove(path)
        raise
    names = {split: source.class_names and list(source.class_names) for split, source in sources.items()}
    index = {"format": records.FORMAT, "class_names": names["train"], "classes_of": names, "splits": splits}
    # The index comes last: without it the shards are nothing.
    files.write(index_path, json.dumps(index, indent=1).encode())
    return {split: source.num_instances for split, source in sources.items()}


def _splits(dataset: str) -> Iterator[tuple[str, FolderSource]]:
    yield "train", folder.open_folder(dataset, "train")
    top = os.path.expanduser(dataset.removeprefix(folder.PREFIX))
    for split in ("test", "val"):
        if files.is_folder(os.path.join(top, "train")) and files.is_folder(os.path.join(top, split)):
            yield split, folder.open_folder(dataset, split)
    if files.is_folder(os.path.join(top, "val")) and not files.is_folder(os.path.join(top, "test")):
        yield "test", folder.open_folder(dataset, "test")


def _tell_unreadable(source: FolderSource, split: str, say: Callable[[str], None], max_fraction: float) -> None:
    reasons = source.bad.reasons
    if not reasons:
        return
    names = some_of(f"{shown(name)}: {reason}" for name, reason in sorted(reasons.items()))
    problem = f"{len(reasons)} of {source.num_instances} files of the {split} split cannot be read: {names}"
    if len(reasons) > max_fraction * source.num_instances:
        raise UserError(
            f"--dataset={source.name}: {problem}; mend them or take them away, or give a larger --max_bad_fraction than"
            f" {max_fraction:g}"
        )
    say(f"{problem}; their records are empty")


def _order(count: int) -> np.ndarray:
    """In which order the images of a split are written, a permutation of their ids."""
    return np.random.default_rng(0).permutation(count)


def _write(
    source: FolderSource, output: str, split: str, shard_bytes: int, progress: OnProgress, written: list[str]
) -> list[dict]:
    """One split's shards: a list of `path`, `records` and `bytes`; their paths are appended to `written`."""
    import tensorflow as tf

    shards: list[dict] = []
    writer = None
    try:
        for done, instance_id in enumerate(_order(source.num_instances).tolist(), start=1):
            if writer is None:
                path = f"{split}-{len(shards):05d}.tfrecord"
                written.append(os.path.join(output, path))
                writer, size, count = tf.io.TFRecordWriter(os.fsencode(written[-1])), 0, 0
            example = _example(source, instance_id)
            writer.write(example)
            size, count = size + len(example), count + 1
            if size >= shard_bytes or done == source.num_instances:
                writer.close()
                writer = None
                shards.append({"path": path, "records": count, "bytes": os.path.getsize(written[-1])})
            progress(f"preparing {split}", done, source.num_instances)
    except tf.errors.OpError as error:
        raise UserError(f"--output={output}: cannot write {shown(path)} there ({error.message})") from error
    return shards


def _example(source: FolderSource, instance_id: int) -> bytes:
    import tensorflow as tf

    name = source.paths.bytes_of(instance_id)
    path = os.path.join(os.fsencode(source.root), name)
    encoded = b""
    try:
        if not os.path.isfile(path):
            raise OSError(0, "no regular file")
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        source.bad.add(os.fsdecode(path), str(error.strerror or error))
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
        "id": tf.train.Feature(int64_list=tf.train.Int64List(value=[instance_id])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(source.labels[instance_id])])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
