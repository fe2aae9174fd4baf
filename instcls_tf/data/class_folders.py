"""Which folders of a dataset are classes: those below the folder of a split, `PATH/SPLIT/CLASS/*`, and no others.

People and cameras make folders for other reasons: by year, by journey, `DCIM`. They are labels only where somebody has
put them below `train` or another split, every image in one of them, and two at least (`source.classes_that_tell`).
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from instcls_tf.data.manifest import ImagePaths
from instcls_tf.errors import some_of

_NAMED = 5


class ClassFolders(NamedTuple):
    """First-level folders, sorted, and the place of each image's among them."""

    names: tuple[str, ...] | None  # None unless every image lies in one
    labels: np.ndarray  # [N] int32, -1 without names
    unknown: str = ""  # of a split without names: which of its folders the train split lacks, as a sentence


def unlabelled(count: int, unknown: str = "") -> ClassFolders:
    """Of so many images without labels."""
    return ClassFolders(None, np.full(count, -1, np.int32), unknown)


def first_folders(paths: ImagePaths) -> ClassFolders:
    """The first-level folders of images, whatever they were made for."""
    order: dict[bytes, int] = {}
    places = np.empty(len(paths), np.int32)
    current = None
    for index, path in enumerate(paths.iter_bytes()):
        if current is None or not path.startswith(current):
            folder, slash, _ = path.partition(b"/")
            if not slash:
                return unlabelled(len(paths))
            current = folder + slash
            place = order.setdefault(folder, len(order))
        places[index] = place
    names = tuple(sorted(os.fsdecode(folder) for folder in order))
    rank = {name: index for index, name in enumerate(names)}
    return ClassFolders(names, np.array([rank[os.fsdecode(folder)] for folder in order], np.int32)[places])


def in_classes_of_train(train: str, train_names: tuple[str, ...] | None, found: ClassFolders) -> ClassFolders:
    """In the train split's classes: a test split may lack some of them; one that adds others has no labels.

    Args:
      train: the folder of the train split.
      train_names: the first-level folders there.
      found: those of another split.
    """
    if found.names is None or train_names is None:
        return unlabelled(len(found.labels))
    unknown = sorted(set(found.names) - set(train_names))
    if unknown:
        folders, be = ("class folder", "is") if len(unknown) == 1 else (f"{len(unknown)} class folders", "are")
        return unlabelled(len(found.labels), f"{folders} {some_of(map(repr, unknown))} {be} missing in {train}")
    places = np.array([train_names.index(name) for name in found.names], np.int32)
    return ClassFolders(train_names, places[found.labels])


def not_labels(paths: ImagePaths) -> str:
    """A sentence about the folders of images that have no labels, for those who take folders for labels.

    Args:
      paths: of the images, below the folder of their split.

    Returns:
      An empty one if no image lies in a folder.
    """
    heads = (path.partition(b"/") for path in paths.iter_bytes())
    names = sorted({folder for folder, slash, _ in heads if slash})
    if not names:
        return ""
    listed = some_of([repr(os.fsdecode(name)) for name in names[: _NAMED + 1]], _NAMED)
    return (
        f"Folders ({listed}) are not taken for labels: those of PATH/{{train,test}}/CLASS/* are, where every image lies"
        f" in one of at least two classes."
    )
