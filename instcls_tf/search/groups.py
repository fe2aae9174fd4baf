"""Pairs of images as connected groups, and which images have a copy that is kept."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def connected(pairs: np.ndarray, count: int) -> list[list[int]]:
    """The groups of images that pairs lead between, in the order of their first images; images alone are left out.

    Args:
      pairs: `[p, 2]` integers in [0, count).
      count: of images.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), [count, count])
    _, group_of = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for place in np.unique(pairs).tolist():
        members.setdefault(int(group_of[place]), []).append(place)
    return list(members.values())


def dropped(pairs: np.ndarray, pixels: np.ndarray, is_protected: np.ndarray, files: np.ndarray) -> list[int]:
    """Images that have a copy which is kept: those with the most pixels stay first, of equal ones the first.

    A chain of copies, such as the frames of a slow pan, has ends that are no copies of each other. So nothing goes but
    what has a pair with an image that stays; and a file with several names goes or stays with all of them.

    Args:
      pairs: `[p, 2]` places of images that are copies of each other.
      pixels: `[n]`, how many each has.
      is_protected: `[n]` bool, images that another set holds (a test split): they stay, and their copies go.
      files: `[n]`, of each image the first one that is the same file.

    Returns:
      Places, rising.
    """
    copies: dict[int, list[int]] = {}  # by files
    for first, second in files[np.asarray(pairs, np.int64).reshape(-1, 2)].tolist():
        copies.setdefault(first, []).append(second)
        copies.setdefault(second, []).append(first)
    kept: set[int] = set()
    for file in sorted(copies, key=lambda file: (not is_protected[file], -pixels[file], file)):
        if is_protected[file] or kept.isdisjoint(copies[file]):
            kept.add(file)
    return np.flatnonzero(np.isin(files, [*(copies.keys() - kept)])).tolist()
