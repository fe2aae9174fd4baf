"""Pairs of images that may be copies of each other: neighbours by features or by hashes that look alike when tiny."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.distributed import collectives
from instcls_tf.search.neighbours import nearest_rows, unit_rows
from instcls_tf.search.signatures import Signatures

# Correlation of two tiny pictures from which their pixels are compared: a copy cut by 5 % has 0.77 and more.
_LOOKS_ALIKE = 0.7
# Pairs that are made, and whose tiny pictures are compared, at a time.
_BLOCK_PAIRS = 100_000


class Neighbours(NamedTuple):
    """The nearest images by features of each image, itself left out."""

    cosines: np.ndarray  # [n, k] float32, falling
    places: np.ndarray  # [n, k] int64


class Candidates(NamedTuple):
    """Pairs to compare pixel by pixel."""

    pairs: np.ndarray  # [p, 2] int64, the lower place first, in rising order
    correlations: np.ndarray  # [p, 2] float32 of the tiny pictures: as they are, and with one mirrored


def neighbours_by_features(rows: np.ndarray, k: int) -> Neighbours:
    """The k nearest others of each row; the workers share the rows out, and each gets all.

    Args:
      rows: `[n, F]` of length 1.
      k: at most n - 1.
    """
    cosines, places = _nearest_shared_out(rows, rows, k + 1)
    # A row is among its own neighbours, unless k others are exactly alike.
    is_itself = places == np.arange(len(rows))[:, None]
    is_itself[~is_itself.any(axis=1), -1] = True
    return Neighbours(cosines[~is_itself].reshape(-1, k), places[~is_itself].reshape(-1, k))


def _nearest_shared_out(rows: np.ndarray, queries: np.ndarray, k: int) -> list[np.ndarray]:
    """`nearest_rows`, of which each worker finds a share."""
    own = nearest_rows(rows, queries[slice(*collectives.own_bounds(len(queries)))], k)
    return [collectives.all_gather(tf.constant(part), "nearest_rows").numpy() for part in own]


def pairs_of_neighbours(places: np.ndarray) -> Iterator[np.ndarray]:
    """Each pair once, the lower place first, in blocks `[p, 2]`: all together take several times what `places` does.

    Args:
      places: `[n, k]` neighbours of the images 0 .. n-1; an image that is its own neighbour is left out.
    """
    images = max(1, _BLOCK_PAIRS // places.shape[1])
    for start in range(0, len(places), images):
        others = places[start : start + images].ravel()
        own = np.repeat(np.arange(start, min(start + images, len(places))), places.shape[1])
        # A pair that both of its images name is told with the first of them.
        is_told = (places[others] == own[:, None]).any(axis=1) & (others < own)
        first, second = np.sort(np.stack([own, others])[:, (own != others) & ~is_told], axis=0).astype(np.int64)
        yield np.stack(np.divmod(np.unique(first * len(places) + second), len(places)), axis=1)


def pairs_to_compare(signatures: Signatures, by_features: np.ndarray, k: int) -> Candidates:
    """The pairs that look alike when tiny, among neighbours by features and by hashes; all workers together.

    Args:
      signatures: of the n images.
      by_features: `[n, k]` places of neighbours.
      k: neighbours by hashes, of the image and of its mirror image; at most n.
    """
    hashes, mirrored = unit_rows(signatures.hashes), unit_rows(signatures.mirrored_hashes)
    found = [by_features, *(_nearest_shared_out(hashes, queries, k)[1] for queries in (hashes, mirrored))]
    kept = [Candidates(np.empty([0, 2], np.int64), np.empty([0, 2], np.float32))]
    for pairs in pairs_of_neighbours(np.concatenate(found, axis=1)):
        correlations = _correlations(signatures.tiny, pairs)
        looks_alike = correlations.max(axis=1, initial=-1) >= _LOOKS_ALIKE
        kept.append(Candidates(pairs[looks_alike], correlations[looks_alike]))
    candidates = Candidates(*map(np.concatenate, zip(*kept)))
    order = np.lexsort(candidates.pairs.T[::-1])
    return Candidates(*(part[order] for part in candidates))


def orientations(correlations: np.ndarray) -> list[bool]:
    """Of one candidate, whether to compare as it is (False), mirrored (True), or both."""
    return [is_mirrored for is_mirrored, value in zip((False, True), correlations) if value >= _LOOKS_ALIKE]


def _correlations(tiny: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    first, second = (_standard(tiny[pairs[:, side]]) for side in (0, 1))
    others = second, second[:, :, ::-1]
    return np.stack([np.einsum("pyx,pyx->p", first, other) for other in others], axis=1)


def _standard(tiny: np.ndarray) -> np.ndarray:
    """Without mean and of length 1; pictures of one tone, which have no direction, get the same one."""
    values = tiny.astype(np.float32) - tiny.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    values += 1e-2  # of a length of 0.16 against that of hundreds of a picture with anything in it
    return values / np.linalg.norm(values, axis=(1, 2), keepdims=True)
