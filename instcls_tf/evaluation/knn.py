"""Nearest-neighbour classification on frozen features."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# Elements of one tile of similarities, [queries, training images].
_TILE_ELEMENTS = 2**24


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, float]:
    """Weighted k-nearest-neighbour accuracy by cosine similarity (Wu et al. 2018, Sec. 3.4).

    Each of the k most similar training images votes for its label with weight exp(cos / temperature); k = 1 is the
    plain nearest neighbour. Exact; k is cut to the number of training images.

    Args:
      train_features: `[M, F]` floats of any scale.
      train_labels: `[M]` integers in [0, C).
      test_features: `[Q, F]`.
      test_labels: `[Q]`.
      k: neighbours that vote.
      temperature: of the weights.

    Returns:
      `top1` and `top5` as fractions, and `examples`, Q.
    """
    k = min(k, len(train_labels))
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    similarities, neighbours = nearest(train_features, test_features, k)
    votes = np.zeros([len(test_labels), num_classes])
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    np.add.at(votes, (np.arange(len(test_labels))[:, np.newaxis], train_labels[neighbours]), weights)
    ranked = np.argsort(-votes, axis=1, kind="stable")
    # A class without any vote is no answer, even where fewer than five classes got one.
    hits = (ranked == test_labels[:, np.newaxis]) & (np.take_along_axis(votes, ranked, axis=1) > 0)
    return {
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits[:, :5].any(axis=1).mean()),
        "examples": len(test_labels),
    }


def nearest(index: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `index` `[M, F]` most similar to each query `[Q, F]`: cosines `[Q, k]` and positions `[Q, k]`."""
    index = tf.math.l2_normalize(tf.cast(index, tf.float32), axis=1)
    tile = max(1, _TILE_ELEMENTS // len(index))
    parts = []
    for start in range(0, len(queries), tile):
        rows = tf.math.l2_normalize(tf.cast(queries[start : start + tile], tf.float32), axis=1)
        parts.append(tf.math.top_k(tf.matmul(rows, index, transpose_b=True), k))
    return tuple(np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))


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

    Returns:
      `mean` and `std` over random draws of the labelled images; the same draws for every network.
    """
    random = np.random.default_rng(seed)
    scores = []
    for _ in range(draws):
        chosen = np.concatenate(
            [
                random.choice(np.flatnonzero(train_labels == label), labels_per_class, replace=False)
                for label in np.unique(train_labels)
            ]
        )
        score = knn_accuracy(train_features[chosen], train_labels[chosen], test_features, test_labels, k=1)
        scores.append(score["top1"])
    return {"mean": float(np.mean(scores)), "std": float(np.std(scores))}
