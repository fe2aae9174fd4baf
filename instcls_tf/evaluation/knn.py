"""Nearest-neighbour classification on frozen features: exact, and streamed over queries and over the index."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from instcls_tf import stamps
from instcls_tf.checks import require_argument
from instcls_tf.classifier.directions import unit_vectors
from instcls_tf.distributed import collectives
from instcls_tf.errors import UserError
from instcls_tf.evaluation.recipes import KNN_NEIGHBORS, KNN_TEMPERATURE

# Elements of one tile of similarities, [queries, rows of the index].
_TILE_ELEMENTS = 2**24
# Queries that vote at a time: their votes are [queries, classes].
_VOTERS = 4096


def knn_accuracy(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    k: int = KNN_NEIGHBORS,
    temperature: float = KNN_TEMPERATURE,
) -> dict[str, float]:
    """Weighted k-nearest-neighbour accuracy by cosine similarity (Wu et al. 2018, Sec. 3.4).

    Each of the k most similar training images votes for its label with weight exp(cos / temperature); k = 1 is the
    plain nearest neighbour. Exact; k is cut to the number of training images.

    Args:
      train_features: `[M, F]` floats of any scale; these and the others as arrays, tensors or lists.
      train_labels: `[M]` integers in [0, C).
      test_features: `[Q, F]`.
      test_labels: `[Q]`.
      k: neighbours that vote.
      temperature: of the weights.

    Returns:
      `top1` and `top5` as fractions, and `examples`, Q.

    Raises:
      ValueError: shapes or labels are others, k or the temperature is out of range, or a feature is not finite.
    """
    require_argument("k", k, k >= 1, "at least 1")
    require_argument("temperature", temperature, temperature > 0, "above 0")
    train_features, train_labels = _checked("train", train_features, train_labels)
    test_features, test_labels = _checked("test", test_features, test_labels)
    widths = train_features.shape[1], test_features.shape[1]
    if widths[0] != widths[1]:
        raise UserError(f"train_features and test_features: must have one width, not {widths[0]} and {widths[1]}")
    hits = knn_hits(train_features, train_labels, test_features, test_labels, k=k, temperature=temperature)
    top1, top5, _ = hits.mean(axis=0).tolist()
    return {"top1": top1, "top5": top5, "examples": len(test_labels)}


def _checked(split: str, features: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Features `[M, F]` and labels `[M]` as arrays."""
    features, labels = np.asarray(features), np.asarray(labels)
    fits = features.ndim == 2 and labels.shape == features.shape[:1] and len(labels) > 0
    if not fits:
        raise UserError(
            f"{split}_features and {split}_labels: must be [n, F] and [n] with n at least 1,"
            f" not {list(features.shape)} and {list(labels.shape)}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{split}_labels: of type {labels.dtype}, must be integers")
    require_argument(f"{split}_labels", int(labels.min()), labels.min() >= 0, "0 or more")
    return features, labels


def knn_hits(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = KNN_NEIGHBORS,
    temperature: float = KNN_TEMPERATURE,
) -> np.ndarray:
    """Query by query what `knn_accuracy` counts.

    Args:
      train_features, train_labels, test_features, test_labels, k, temperature: see `knn_accuracy`.

    Returns:
      `[Q, 3]` bool: the label came first in the weighted vote; was among the first five; is the nearest neighbour's.
    """
    k = min(k, len(train_labels))
    num_classes = int(max(train_labels.max(), test_labels.max(initial=0))) + 1
    hits = np.zeros([len(test_labels), 3], bool)
    for start in range(0, len(test_labels), _VOTERS):
        part = slice(start, start + _VOTERS)
        similarities, neighbours = nearest(train_features, test_features[part], k)
        labels, wanted = train_labels[neighbours], np.asarray(test_labels[part])[:, np.newaxis]  # [q, k], [q, 1]
        votes = np.zeros([len(wanted), num_classes])
        weights = np.exp((similarities - similarities[:, :1]) / temperature)
        np.add.at(votes, (np.arange(len(wanted))[:, np.newaxis], labels), weights)
        ranked = np.argsort(-votes, axis=1, kind="stable")[:, :5]
        # A class without any vote is no answer, even where fewer than five classes got one.
        right = (ranked == wanted) & (np.take_along_axis(votes, ranked, axis=1) > 0)
        hits[part] = np.stack([right[:, 0], right.any(axis=1), labels[:, 0] == wanted[:, 0]], axis=1)
    return hits


def shared_knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = KNN_NEIGHBORS,
    temperature: float = KNN_TEMPERATURE,
) -> dict[str, float]:
    """`knn_accuracy` with the queries shared out over the workers, and the plain nearest neighbour beside it.

    Args:
      train_features, train_labels, test_features, test_labels, k, temperature: see `shared_knn_hits`.

    Returns:
      What `knn_accuracy` returns, and `nearest_top1`: the accuracy of 1-NN.

    Raises:
      UserError: see `shared_knn_hits`.
    """
    hits = shared_knn_hits(train_features, train_labels, test_features, test_labels, k=k, temperature=temperature)
    top1, top5, nearest_top1 = hits.mean(axis=0).tolist()
    return {"top1": top1, "top5": top5, "examples": len(test_labels), "nearest_top1": nearest_top1}


def shared_knn_hits(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = KNN_NEIGHBORS,
    temperature: float = KNN_TEMPERATURE,
) -> np.ndarray:
    """`knn_hits` with the queries shared out over the workers; each gets the whole, bool `[Q, 3]`.

    Args:
      train_features, train_labels, test_features, test_labels, k, temperature: see `knn_accuracy`; all of them, the
        same on all workers.

    Raises:
      UserError: a split is empty or lacks labels, or a feature is not finite.
    """
    for labels, split in ((train_labels, "train"), (test_labels, "test")):
        if not len(labels) or labels.min() < 0:
            problem = "has images without labels" if len(labels) else "has no image that can be read"
            raise UserError(f"the {split} split {problem}")
    own = slice(*collectives.own_bounds(len(test_labels)))
    hits = knn_hits(train_features, train_labels, test_features[own], test_labels[own], k=k, temperature=temperature)
    return collectives.all_gather(tf.constant(hits, tf.uint8), "knn_hits").numpy().astype(bool)


def nearest(index: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `index` most similar to each query; equal ones in the order of their positions.

    Args:
      index: `[M, F]`; read block by block, so that it may be a file mapped into memory.
      queries: `[Q, F]`.
      k: at most M.

    Returns:
      Cosines `[Q, k]` float32 and positions `[Q, k]` int32.
    """
    tile = max(1, min(len(queries), math.isqrt(_TILE_ELEMENTS)))
    block = max(1, _TILE_ELEMENTS // tile)
    parts = []
    for start in range(0, len(queries), tile):
        rows = _directions(queries[start : start + tile])
        best, places = tf.zeros([len(rows), 0]), tf.zeros([len(rows), 0], tf.int32)
        for first in range(0, len(index), block):
            stamps.stamp("nearest neighbours", start, len(queries))
            best, places = _merge(rows, _directions(index[first : first + block]), first, best, places, k)
        parts.append((best.numpy(), places.numpy()))
    if not parts:
        return np.zeros([0, k], np.float32), np.zeros([0, k], np.int32)
    return tuple(np.concatenate(column) for column in zip(*parts))


def _directions(rows: np.ndarray) -> tf.Tensor:
    if not np.isfinite(rows).all():
        raise UserError("the features are not finite: did the training of their network diverge?")
    return unit_vectors(tf.cast(np.asarray(rows), tf.float32))


def _merge(
    rows: tf.Tensor, block: tf.Tensor, first: int, best: tf.Tensor, places: tf.Tensor, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Lets a block of the index, whose first position is `first`, into the lists `[q, <= k]` of the queries."""
    cosines, found = tf.math.top_k(tf.matmul(rows, block, transpose_b=True), min(k, len(block)))
    # Earlier blocks stand first: top_k prefers them among equals.
    best, places = tf.concat([best, cosines], axis=1), tf.concat([places, found + first], axis=1)
    best, order = tf.math.top_k(best, min(k, best.shape[1]))
    return best, tf.gather(places, order, batch_dims=1)


def few_labels_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    labels_per_class: int = 5,
    draws: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """Nearest-neighbour accuracy when only a few training images per class have a label.

    A class of fewer images than `labels_per_class` takes part with all that it has.

    Args:
      train_features: `[M, F]` floats of any scale.
      train_labels: `[M]` integers.
      test_features: `[Q, F]`.
      test_labels: `[Q]`.
      labels_per_class: training images that have one.
      draws: how often they are drawn.
      seed: of the draws.

    Returns:
      `mean` and `std` over random draws of the labelled images; the same draws for every network.
    """
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(train_labels == label) for label in np.unique(train_labels)]
    scores = []
    for _ in range(draws):
        chosen = np.concatenate([random.choice(ids, min(labels_per_class, len(ids)), replace=False) for ids in members])
        score = knn_accuracy(train_features[chosen], train_labels[chosen], test_features, test_labels, k=1)
        scores.append(score["top1"])
    return {"mean": float(np.mean(scores)), "std": float(np.std(scores))}
