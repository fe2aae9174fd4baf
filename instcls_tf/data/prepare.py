"""Writes a folder of images as TFRecord shards, for file systems that are slow with many small files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Callable

from instcls_tf import files
from instcls_tf.checks import require_value
from instcls_tf.data import folder, records
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.source import notes_of
from instcls_tf.data.tfds_builder import refuse_path
from instcls_tf.errors import UserError
from instcls_tf.progress import OnProgress, no_progress


def prepare(
    dataset: str,
    output: str,
    shard_megabytes: int,
    progress: OnProgress = no_progress,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, int]:
    """Copies the images of a folder, with their names, ids and labels, into shards and writes an index of them.

    Files that cannot be read become records without bytes, so that ids stay what they are in the folder.

    Args:
      dataset: `folder:PATH`; its train and, if there are any, test and val splits are written.
      output: folder to write to; it must not hold an index already.
      shard_megabytes: size at which a new shard begins.
      progress: called with a stage's name, images done and images in all.
      say: called with a line about what is not in the folder's listing, if anything is left out.

    Returns:
      Images per split.

    Raises:
      UserError: no folder, or an output that holds something already.
    """
    if not dataset.startswith(folder.PREFIX):
        refuse_path(dataset)
        raise UserError(f"--dataset={dataset}: wanted folder:PATH")
    require_value("shard_megabytes", shard_megabytes, shard_megabytes >= 1, "at least 1")
    index_path = os.path.join(output, records.INDEX_NAME)
    if os.path.exists(index_path):
        raise UserError(f"--output={output}: holds prepared images already, name another folder")
    sources = dict(_splits(dataset))
    for note in notes_of(*sources.values()):
        say(note)
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output}: cannot make this folder ({error.strerror})") from error
    splits = {
        split: _write(source, output, split, shard_megabytes << 20, progress) for split, source in sources.items()
    }
    names = sources["train"].class_names
    index = {"format": records.FORMAT, "class_names": names and list(names), "splits": splits}
    # The index comes last: without it the shards are nothing.
    files.write(index_path, json.dumps(index, indent=1).encode())
    return {split: source.num_instances for split, source in sources.items()}


def _splits(dataset: str) -> Iterator[tuple[str, FolderSource]]:
    yield "train", folder.open_folder(dataset, "train")
    top = os.path.expanduser(dataset.removeprefix(folder.PREFIX))
    for split in ("test", "val"):
        if os.path.isdir(os.path.join(top, "train")) and os.path.isdir(os.path.join(top, split)):
            yield split, folder.open_folder(dataset, split)
    if os.path.isdir(os.path.join(top, "val")) and not os.path.isdir(os.path.join(top, "test")):
        yield "test", folder.open_folder(dataset, "test")


def _write(source: FolderSource, output: str, split: str, shard_bytes: int, progress: OnProgress) -> list[dict]:
    """One split's shards: a list of `path`, `records` and `bytes`."""
    import tensorflow as tf

    shards: list[dict] = []
    writer = None
    for instance_id, name in enumerate(source.paths.iter_bytes()):
        if writer is None:
            path = f"{split}-{len(shards):05d}.tfrecord"
            writer, written, count = tf.io.TFRecordWriter(os.fsencode(os.path.join(output, path))), 0, 0
        example = _example(source, instance_id, name)
        writer.write(example)
        written, count = written + len(example), count + 1
        if written >= shard_bytes or instance_id + 1 == source.num_instances:
            writer.close()
            writer = None
            size = os.path.getsize(os.path.join(output, path))
            shards.append({"path": path, "records": count, "bytes": size})
        progress(f"preparing {split}", instance_id + 1, source.num_instances)
    return shards


def _example(source: FolderSource, instance_id: int, name: bytes) -> bytes:
    import tensorflow as tf

    path = os.path.join(os.fsencode(source.root), name)
    encoded = b""
    if os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                encoded = file.read()
        except OSError as error:
            source.bad.add(os.fsdecode(path), str(error.strerror))
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
        "id": tf.train.Feature(int64_list=tf.train.Int64List(value=[instance_id])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(source.labels[instance_id])])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
