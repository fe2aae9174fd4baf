"""`folder:PATH`: image files in any nesting, read at random.

Listing never asks for a file's status and keeps no Python object per file; it does not import TensorFlow.
"""

from __future__ import annotations

import array
import dataclasses
import os
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from instcls_tf.data import manifest
from instcls_tf.data.decoding import IMAGE_SUFFIXES, BadImages, decode_file
from instcls_tf.data.manifest import ImagePaths
from instcls_tf.errors import UserError

PREFIX = "folder:"
_SUFFIXES = tuple(os.fsencode(suffix) for suffix in IMAGE_SUFFIXES)
_DOT = ord(".")


class Changes(NamedTuple):
    """How the files differ from the manifest that gave them their ids."""

    vanished: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files below `root`.

    An id is the place of a relative path in byte order, or the one that a manifest has for it. `labels` is int32 `[N]`,
    -1 if unknown; `irregular` lists the ids of what has an image's name but is no file (a broken link, a pipe).
    """

    name: str
    class_names: tuple[str, ...] | None
    root: str
    paths: ImagePaths
    labels: np.ndarray
    irregular: np.ndarray
    changes: Changes = dataclasses.field(default_factory=Changes)
    bad: BadImages = dataclasses.field(default_factory=BadImages)
    random_access: ClassVar[bool] = True

    @property
    def num_instances(self) -> int:
        """The number of images, and so of instance ids."""
        return len(self.paths)

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from an instance id (int64 scalar) to its image, uint8 `[H, W, 3]`, empty if unreadable."""
        import tensorflow as tf

        # Outside the mapped function: a captured tensor is an input, a constant inside would enter the (2 GB) graph.
        block = tf.constant(self.paths.block)
        begins, lengths = tf.constant(self.paths.begins, tf.int64), tf.constant(self.paths.lengths, tf.int64)
        folder = tf.constant(os.path.join(os.fsencode(self.root), b""))
        irregular = tf.constant(self.irregular, tf.int64)

        def load(instance_id: tf.Tensor) -> tf.Tensor:
            path = folder + tf.strings.substr(block, begins[instance_id], lengths[instance_id])
            readable = tf.reduce_all(irregular != instance_id)
            return decode_file(tf.where(readable, path, ""), path, self.bad)

        return load

    def write_manifest(self, workdir: str) -> tuple[str, ...]:
        """Writes or extends the manifest in a run's folder.

        Returns:
          The paths of files that have another size than in the manifest that was there.
        """
        path = os.path.join(workdir, manifest.MANIFEST_NAME)
        sizes, changed = manifest.file_sizes(self.root, self.paths), ()
        if os.path.exists(path):
            _, before = manifest.read(path)
            now = sizes[: len(before)]
            changed = tuple(self.paths[i] for i in np.flatnonzero((now != before) & (now >= 0) & (before >= 0)))
            if len(before) == len(sizes):
                return changed
            sizes[: len(before)] = before
        manifest.write(path, self.paths, sizes)
        return changed


def open_folder(dataset: str, split: str, workdir: str | None = None) -> FolderSource:
    """Lists a folder.

    Args:
      dataset: `folder:PATH`.
      split: `train`, `test`, or another folder below PATH.
      workdir: of a run, whose manifest, if there is one, gives the ids.

    Raises:
      UserError: there is no such folder, or fewer than two images in it.
    """
    top = os.path.expanduser(dataset.removeprefix(PREFIX))
    if not os.path.exists(top):
        raise UserError(f"--dataset={dataset}: no such folder")
    if not os.path.isdir(top):
        raise UserError(f"--dataset={dataset}: not a folder, wanted a folder of images")
    root = _split_folder(dataset, top, split)
    paths, irregular = _list(dataset, root)
    if not len(paths):
        where = "in that folder" if root == top else f"in {root}"
        raise UserError(f"--dataset={dataset}: no images ({', '.join(IMAGE_SUFFIXES)}) {where}")
    if len(paths) == 1:
        raise UserError(f"--dataset={dataset}: one image only, wanted at least 2 images: every image is a class")
    changes = Changes()
    if workdir and os.path.exists(os.path.join(workdir, manifest.MANIFEST_NAME)):
        paths, irregular, changes = _with_known_ids(workdir, paths, irregular)
    folders, ranks = _class_folders(paths)
    if folders and split != "train" and os.path.isdir(os.path.join(top, "train")):
        folders, ranks = _as_in_train(dataset, top, folders, ranks)
    return FolderSource(dataset, folders, root, paths, ranks, irregular, changes)


def _split_folder(dataset: str, top: str, split: str) -> str:
    if split == "train" and not os.path.isdir(os.path.join(top, "train")):
        return top
    candidates = ("test", "val") if split == "test" else (split,)
    for name in candidates:
        if os.path.isdir(os.path.join(top, name)):
            return os.path.join(top, name)
    wanted = " or ".join(os.path.join(top, name) for name in candidates)
    raise UserError(f"--dataset={dataset}: no {split} split, wanted a folder {wanted}")


def _list(dataset: str, root: str) -> tuple[ImagePaths, np.ndarray]:
    """The images below `root` in the byte order of their paths, and the indices of those that are no regular files."""
    block, lengths, irregular, seen = bytearray(), array.array("q"), [], set()

    def walk(folder: bytes, prefix: bytes) -> None:
        # Follows links, but enters no folder twice. In sorted order, so that which of two links to one folder counts
        # does not depend on the file system.
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        names, odd = [], set()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    names.append(name + b"/")
                # Names that begin with a dot are other programs' ("._photo.jpg" of macOS is no picture).
                elif name.lower().endswith(_SUFFIXES) and name[0] != _DOT:
                    names.append(name)
                    if not entry.is_file():
                        odd.add(name)
        # With the slash at the end of folders this is the order of whole paths.
        names.sort()
        for name in names:
            if name[-1:] == b"/":
                walk(os.path.join(folder, name[:-1]), prefix + name)
                continue
            if name in odd:
                irregular.append(len(lengths))
            block.extend(prefix + name)
            lengths.append(len(prefix) + len(name))

    try:
        walk(os.fsencode(root), b"")
    except OSError as error:
        raise UserError(f"--dataset={dataset}: cannot list {os.fsdecode(error.filename)} ({error.strerror})") from error
    lengths = np.frombuffer(lengths, np.int64) if lengths else np.array([], np.int64)
    return ImagePaths(bytes(block), np.cumsum(lengths) - lengths, lengths), np.array(irregular, np.int64)


def _with_known_ids(workdir: str, found: ImagePaths, irregular: np.ndarray) -> tuple[ImagePaths, np.ndarray, Changes]:
    known, _ = manifest.read(os.path.join(workdir, manifest.MANIFEST_NAME))
    merged = manifest.merge(known, found)
    odd = np.array([hash(found.bytes_of(i)) for i in irregular], np.int64)
    irregular = np.flatnonzero(np.isin(merged.paths.hashes(), odd)) if len(odd) else irregular
    added = range(merged.num_known, len(merged.paths))
    changes = Changes(tuple(merged.paths[i] for i in merged.vanished), tuple(merged.paths[i] for i in added))
    return merged.paths, irregular, changes


def _class_folders(paths: ImagePaths) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """The first-level folders and the rank of each image's, or None and -1 unless every image lies in one."""
    order, places = {}, np.empty(len(paths), np.int32)
    current = None
    for index, path in enumerate(paths.iter_bytes()):
        if current is None or not path.startswith(current):
            folder, slash, _ = path.partition(b"/")
            if not slash:
                return None, np.full(len(paths), -1, np.int32)
            current = folder + slash
            place = order.setdefault(folder, len(order))
        places[index] = place
    names = tuple(sorted(os.fsdecode(folder) for folder in order))
    rank = {name: index for index, name in enumerate(names)}
    return names, np.array([rank[os.fsdecode(folder)] for folder in order], np.int32)[places]


def _as_in_train(
    dataset: str, top: str, names: tuple[str, ...], ranks: np.ndarray
) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """In the train split's classes: a test split may lack some of them, but adds none."""
    train = os.path.join(top, "train")
    train_names, _ = _class_folders(_list(dataset, train)[0])
    if train_names is None:
        return None, np.full(len(ranks), -1, np.int32)
    unknown = sorted(set(names) - set(train_names))
    if unknown:
        raise UserError(f"--dataset={dataset}: class folder {unknown[0]!r} is missing in {train}")
    return train_names, np.array([train_names.index(name) for name in names], np.int32)[ranks]
