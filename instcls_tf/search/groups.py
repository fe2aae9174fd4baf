"""Pairs of images as connected groups, and which image of a group is kept."""

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


def dropped(group: list[int], pixels: np.ndarray, is_protected: np.ndarray) -> list[int]:
    """All of a group but one: that of the most pixels, of equal ones the first.

    Args:
      group: places of images.
      pixels: `[n]`, how many each has.
      is_protected: `[n]` bool, images that another set holds (a test split): they stay, and all others go.
    """
    if any(is_protected[place] for place in group):
        return [place for place in group if not is_protected[place]]
    kept = max(group, key=lambda place: (pixels[place], -place))
    return [place for place in group if place != kept]
