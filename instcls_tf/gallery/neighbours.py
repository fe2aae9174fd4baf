"""The nearest others of every image, exact; images that look the same, and those that are like no other."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np

from instcls_tf.errors import UserError

# Similarities to so many images are in memory at a time.
_QUERIES = 4096
# Two images count as near duplicates from this cosine and this correlation of their pixels on.
NEAR_COSINE, NEAR_PIXELS = 0.9, 0.97
# A thumbnail as it is compared, pixels a side; and grey levels by which flat ones may differ.
_SIGNATURE, _FLAT = 8, 3.0
_PAIRS = 2**16


class Neighbours(NamedTuple):
    """The nearest others, the most similar first."""

    places: np.ndarray  # [n, k] int32
    cosines: np.ndarray  # [n, k] float32


class Twins(NamedTuple):
    """Pairs of images that look the same."""

    pairs: np.ndarray  # [P, 2] int32, the first below the second; the most similar first
    cosines: np.ndarray  # [P] float32, of their features


def nearest_others(vectors: np.ndarray, k: int) -> Neighbours:
    """The k others whose features point most nearly the same way; with FAISS where it is installed.

    Args:
      vectors: `[n, F]` floats of any scale.
      k: at most n - 1.

    Raises:
      UserError: a feature is not finite.
    """
    cosines, places = _search(vectors, k + 1)
    own = places == np.arange(len(places))[:, None]
    # Among equals an image may miss itself: then the last one goes.
    own[~own.any(axis=1), -1] = True
    kept = ~own
    shape = (len(places), k)
    return Neighbours(places[kept].reshape(shape).astype(np.int32), cosines[kept].reshape(shape))


def _search(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if importlib.util.find_spec("faiss") is None:
        from instcls_tf.evaluation.knn import nearest

        return nearest(vectors, vectors, k)
    import faiss

    rows = np.array(vectors, np.float32, order="C")
    if not np.isfinite(rows).all():
        raise UserError("the features are not finite: did the training of their network diverge?")
    faiss.normalize_L2(rows)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    found = [index.search(rows[first : first + _QUERIES], k) for first in range(0, len(rows), _QUERIES)]
    cosines, places = (np.concatenate(column) for column in zip(*found))
    return cosines, places


def outlier_ranks(neighbours: Neighbours) -> np.ndarray:
    """`[n]` uint32: 0 for the image that is least like its nearest other, n - 1 for the one that is most so."""
    ranks = np.empty([len(neighbours.cosines)], np.uint32)
    ranks[np.argsort(neighbours.cosines[:, 0], kind="stable")] = np.arange(len(ranks), dtype=np.uint32)
    return ranks


def near_duplicates(neighbours: Neighbours, thumbnails: np.ndarray) -> Twins:
    """Pairs whose features and whose pixels agree: features of a young run call much alike that is not.

    Args:
      neighbours: of all images.
      thumbnails: `[n, S, S, 3]` uint8; it may be a file mapped into memory.
    """
    firsts, columns = np.nonzero(neighbours.cosines >= NEAR_COSINE)
    both = np.stack([firsts, neighbours.places[firsts, columns]], axis=1)
    pairs, where = np.unique(np.sort(both, axis=1), axis=0, return_index=True)
    cosines = neighbours.cosines[firsts[where], columns[where]]
    signatures = _signatures(thumbnails)
    same = [_same_pixels(signatures, pairs[first : first + _PAIRS]) for first in range(0, len(pairs), _PAIRS)]
    kept = np.flatnonzero(np.concatenate([np.zeros([0], bool), *same]))
    kept = kept[np.argsort(-cosines[kept], kind="stable")]
    return Twins(pairs[kept].astype(np.int32), cosines[kept])


def _signatures(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails in coarse squares, `[n, 8 · 8 · 3]` float32."""
    size = thumbnails.shape[1]
    edges = np.linspace(0, size, _SIGNATURE + 1).astype(int)[:-1]
    counts = np.diff([*edges, size]).astype(np.float32)
    area = counts[:, None] * counts[None, :]
    parts = []
    for first in range(0, len(thumbnails), _QUERIES):
        block = thumbnails[first : first + _QUERIES].astype(np.float32)
        sums = np.add.reduceat(np.add.reduceat(block, edges, axis=1), edges, axis=2)
        parts.append((sums / area[None, :, :, None]).reshape(len(block), -1))
    return np.concatenate(parts)


def _same_pixels(signatures: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    first, second = signatures[pairs[:, 0]], signatures[pairs[:, 1]]
    close = np.abs(first - second).max(axis=1) <= _FLAT
    first, second = (rows - rows.mean(axis=1, keepdims=True) for rows in (first, second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    flat = lengths < _FLAT**2 * signatures.shape[1]
    correlation = (first * second).sum(axis=1) / np.maximum(lengths, 1e-12)
    return close | (~flat & (correlation >= NEAR_PIXELS))
