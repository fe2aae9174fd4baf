"""Places of images on a map: UMAP where it is installed, the two principal components elsewhere."""

from __future__ import annotations

import importlib.util
import warnings
from typing import NamedTuple

import numpy as np

from instcls_tf import stamps
from instcls_tf.errors import UserError
from instcls_tf.gallery.settings import AUTO, PCA, UMAP

# Rows that are in memory as floats at a time.
_BLOCK_ROWS = 8192
# What UMAP sees of features: it looks for neighbours among so many principal components.
_UMAP_COMPONENTS = 50
_UMAP_NEIGHBORS = 15
# UMAP's neighbour graph, and its start from the principal components, need some images.
_LEAST_FOR_UMAP = 20


class Layout(NamedTuple):
    """Where images lie."""

    places: np.ndarray  # [n, 2] float32 in 0 .. 1
    sentence: str  # what people are told about it


def method_of(layout: str, num_images: int) -> str:
    """How a map will be made: `umap` or `pca`.

    Args:
      layout: `auto`, `umap` or `pca`.
      num_images: n.

    Raises:
      UserError: UMAP is wanted and not installed.
    """
    installed = importlib.util.find_spec("umap") is not None
    if layout == UMAP and not installed:
        raise UserError(
            "--layout=umap: the package umap-learn is not installed: pip install '.[umap]', or --layout=pca"
        )
    few = num_images < _LEAST_FOR_UMAP
    return UMAP if layout != PCA and installed and not (layout == AUTO and few) else PCA


def lay_out(vectors: np.ndarray, method: str, seed: int) -> Layout:
    """Places images so that those with similar features lie together; the same each time.

    Args:
      vectors: `[n, F]` floats; their directions count. It may be a file mapped into memory.
      method: of `method_of`.
      seed: of UMAP.
    """
    if method == PCA:
        components, share = principal_components(vectors, 2)
        sentence = f"The map is made of the two principal components, which hold {share:.0%} of the variance"
        return Layout(_into_unit_square(components), f"{sentence} (PCA; with umap-learn installed it would be UMAP).")
    components, _ = principal_components(vectors, _UMAP_COMPONENTS)
    return Layout(_into_unit_square(_umap(components, seed)), f"The map is made by UMAP (seed {seed}).")


def principal_components(vectors: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """Directions of features along their principal components, read block by block.

    Args:
      vectors: `[n, F]`.
      most: components that are wanted; fewer if F is smaller.

    Returns:
      `[n, C]` float32, and the share of the variance that they hold.
    """
    blocks = [slice(first, first + _BLOCK_ROWS) for first in range(0, len(vectors), _BLOCK_ROWS)]
    width = vectors.shape[1]
    total, products = np.zeros([width]), np.zeros([width, width])
    for block in blocks:
        stamps.stamp("map", block.start, len(vectors))
        rows = _directions(vectors[block])
        total += rows.sum(axis=0)
        products += rows.T @ rows
    mean = total / len(vectors)
    variances, axes = np.linalg.eigh(products / len(vectors) - np.outer(mean, mean))
    axes = axes[:, ::-1][:, :most]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])  # eigenvectors have no sign of their own
    share = variances[::-1][:most].sum() / max(variances.sum(), 1e-12)
    found = [(_directions(vectors[block]) - mean) @ axes for block in blocks]
    return np.concatenate(found).astype(np.float32), float(share)


def _directions(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _umap(components: np.ndarray, seed: int) -> np.ndarray:
    import umap

    neighbors = min(_UMAP_NEIGHBORS, len(components) - 1)
    with warnings.catch_warnings():  # that a seed costs the threads
        warnings.simplefilter("ignore")
        made = umap.UMAP(n_neighbors=neighbors, init="pca", random_state=seed, n_jobs=1, low_memory=True)
        return made.fit_transform(components)


def _into_unit_square(places: np.ndarray) -> np.ndarray:
    """Both axes at the same scale, with a margin."""
    if places.shape[1] < 2:  # features of one number
        places = np.concatenate([places, np.zeros_like(places)], axis=1)
    low, high = places.min(axis=0), places.max(axis=0)
    span = max(float((high - low).max()), 1e-12)
    return (0.5 + 0.96 * (places - (low + high) / 2) / span).clip(0, 1).astype(np.float32)


def along_a_curve(places: np.ndarray) -> np.ndarray:
    """An order in which images that follow each other lie together (Morton's), int64 `[n]`.

    Thumbnails are stored in it: what is seen at once is in few files.

    Args:
      places: `[n, 2]` in 0 .. 1.
    """
    x, y = (_spread((places[:, axis] * 65535).astype(np.uint64)) for axis in (0, 1))
    return np.argsort(x | (y << np.uint64(1)), kind="stable")


def _spread(bits: np.ndarray) -> np.ndarray:
    """16 bits with a zero between each two."""
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
    return bits
