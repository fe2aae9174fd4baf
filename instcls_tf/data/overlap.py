"""Which images are the same files, or the same records, however they are called: of two sources, or within one.

Copies of an image in different files are not looked for here; `search` finds them by their pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from instcls_tf.data.folder import FolderSource
from instcls_tf.data.records import Shards
from instcls_tf.data.source import Source


def overlapping(first: Source, second: Source) -> str | None:
    """The name of something that is in both of two sources, None if nothing is; see `common_files`."""
    return next(iter(common_files(first, second)), None)


def common_files(first: Source, second: Source) -> list[str]:
    """What is in both of two sources: folders, prepared records or datasets of TFDS, or parts of them.

    Args:
      first, second: of whatever kinds; those of different kinds have nothing in common, as far as can be told.

    Returns:
      Paths of images, or of record files with the records that both take from them, in the order of their names; of
      sources that are no files the name, if they are the same images.
    """
    if isinstance(first, FolderSource) and isinstance(second, FolderSource):
        return sorted(_files(first) & _files(second))
    if not first.random_access and not second.random_access:
        return sorted(set(_common_records(first.shards, second.shards)))
    if type(first) is type(second) and first.content_digest() == second.content_digest():
        return [first.name]
    return []


def same_files(source: Source, ids: np.ndarray) -> np.ndarray:
    """Which images of a source are one file: links lead to it, or it has several names (hard links).

    Args:
      source: the images; those of a folder only can be one file.
      ids: `[n]` instance ids.

    Returns:
      `[n]` of each image the place of the first one that is the same file: its own where it is alone.
    """
    places = np.arange(len(ids))
    if isinstance(source, FolderSource):
        first: dict[object, int] = {}
        for place, instance_id in enumerate(ids.tolist()):
            identity = _identity(os.path.join(source.root, source.name_of(instance_id)))
            places[place] = first.setdefault(identity, place)
    return places


def _identity(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return path
    # Some file systems have no numbers of files to tell them apart by.
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 and status.st_ino else os.path.realpath(path)


def _files(source: FolderSource) -> set[str]:
    return {os.path.realpath(os.path.join(source.root, path)) for path in source.paths}


def _common_records(first: Shards, second: Shards) -> Iterator[str]:
    taken: dict[str, list[tuple[int, int]]] = {}
    for path, begin, end in _ranges(first):
        taken.setdefault(path, []).append((begin, end))
    for path, begin, end in _ranges(second):
        for other_begin, other_end in taken.get(path, []):
            low, high = max(begin, other_begin), min(end, other_end)
            if low < high:
                yield f"{path} (records {low} to {high - 1})"


def _ranges(shards: Shards) -> Iterator[tuple[str, int, int]]:
    """Of each file the first record that is taken, and one after the last."""
    for path, skip, count in zip(shards.paths, shards.skips.tolist(), shards.counts.tolist()):
        yield os.path.realpath(path), skip, skip + count
