"""The labels of a batch (Eq. 1 and Eq. 2): non-zero in K + 1 places of a row only, and kept as those places.

Shapes use the legend of `softmax.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Targets(NamedTuple):
    """The labels y_ij > 0 on this worker's streamed classes, sorted by class."""

    row: tf.Tensor  # [E] int32: i
    column: tf.Tensor  # [E] int32: j as a position among the n streamed classes
    label: tf.Tensor  # [E] float32: y_ij
    is_own: tf.Tensor  # [E] bool: j is the row's own class


def label_distribution(
    own_classes: tf.Tensor, hard_negatives: tf.Tensor | None, smoothing: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Eq. 2: 1 - alpha on the row's own class, alpha / K on its K hard negatives, 0 elsewhere.

    Args:
      own_classes: `[B]` integer instance ids.
      hard_negatives: `[B, K]` class ids, or None for plain one-hot labels.
      smoothing: alpha.

    Returns:
      `[B, K + 1]` class ids and float32 labels of the non-zero places; the own class comes first.
    """
    own = own_classes[:, tf.newaxis]  # [B, 1]
    if hard_negatives is None or smoothing == 0:
        return own, tf.ones_like(own, tf.float32)
    num_hard = tf.shape(hard_negatives)[1]
    classes = tf.concat([own, tf.cast(hard_negatives, own.dtype)], axis=1)  # [B, K+1]
    row = tf.concat([[1.0 - smoothing], tf.fill([num_hard], smoothing / tf.cast(num_hard, tf.float32))], axis=0)
    return classes, tf.broadcast_to(row, tf.shape(classes))


def select_targets(columns: tf.Tensor, labels: tf.Tensor) -> Targets:
    """Keeps the places that fall on streamed classes and sorts them by class.

    Args:
      columns: `[B, K + 1]` int32 positions among the streamed classes, -1 for a class of another worker.
      labels: `[B, K + 1]` float32 y.
    """
    place = tf.where(columns >= 0)  # [E, 2] int64
    column = tf.gather_nd(columns, place)
    order = tf.argsort(column, stable=True)
    place = tf.cast(tf.gather(place, order), tf.int32)
    return Targets(
        row=place[:, 0],
        column=tf.gather(column, order),
        label=tf.gather_nd(labels, place),
        is_own=place[:, 1] == 0,
    )
