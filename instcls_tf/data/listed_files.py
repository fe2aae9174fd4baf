"""Image files that are named one by one, wherever they lie, as a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Union

import numpy as np

from instcls_tf.data.decoding import DEFAULT_READING, Reading
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.manifest import ImagePaths

Paths = Union[str, "os.PathLike[str]", Sequence[Union[str, "os.PathLike[str]"]]]


def listed(paths: Paths) -> list[str]:
    """The paths; of a single one, which would be a sequence of letters, a list with it alone."""
    return [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]


def listed_files(paths: Paths, reading: Reading = DEFAULT_READING) -> FolderSource:
    """The files in this order, without labels; an id is the place of a path.

    Args:
      paths: of any folders; one alone is a list of one.
      reading: how files become pixels.
    """
    whole = [os.path.abspath(os.fsencode(path)) for path in listed(paths)]
    below_root = [path.lstrip(b"/") for path in whole]
    lengths = np.array([len(path) for path in below_root], np.int64)
    irregular = np.flatnonzero([not os.path.isfile(path) for path in whole])
    listing = ImagePaths(b"".join(below_root), np.cumsum(lengths) - lengths, lengths)
    labels = np.full([len(whole)], -1, np.int32)
    return FolderSource("images", None, "/", listing, labels, irregular, reading=reading)
