"""The labels of a batch (Eq. 1 and Eq. 2): non-zero in K + 1 places of a row only, and kept as those places.

Shapes use the legend of `softmax.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf

from instcls_tf.data import permutation
from instcls_tf.distributed import collectives


class Targets(NamedTuple):
    """The labels y_ij > 0 on this worker's streamed classes, sorted by class."""

    row: tf.Tensor  # [E] int32: i
    column: tf.Tensor  # [E] int32: j as a position among the n streamed classes
    label: tf.Tensor  # [E] float32: y_ij
    is_own: tf.Tensor  # [E] bool: j is the row's own class


class HardNegativeLists(Protocol):
    """The lists of all classes, each on the worker that owns its class."""

    def lookup(self, instance_ids: tf.Tensor) -> tf.Tensor:
        """`[B, K]` int32 hard negatives of the global batch with the ids `[B]`; all workers together."""


class ListsOfRows(NamedTuple):
    """`HardNegativeLists` of rows whose hard negatives are known already."""

    ids: tf.Tensor  # [b, K] integers: those of this worker's rows, in their order
    name: str = "lists_of_rows"  # across the workers; another for each that is looked up in one step

    def lookup(self, instance_ids: tf.Tensor) -> tf.Tensor:
        """As `HardNegativeLists` has it."""
        del instance_ids
        return collectives.all_gather(tf.cast(self.ids, tf.int32), self.name)


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
    num_hard_negatives = tf.shape(hard_negatives)[1]
    classes = tf.concat([own, tf.cast(hard_negatives, own.dtype)], axis=1)  # [B, K+1]
    of_each = smoothing / tf.cast(num_hard_negatives, tf.float32)
    row = tf.concat([[1.0 - smoothing], tf.fill([num_hard_negatives], of_each)], axis=0)  # [K+1]
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


def split_targets(columns: tf.Tensor, labels: tf.Tensor, streamed: tf.Tensor) -> tuple[Targets, Targets]:
    """The places that fall on streamed classes, and those that fall on other classes of this worker.

    Args:
      columns: `[B, K + 1]` int32 local classes, -1 for a class of another worker.
      labels: `[B, K + 1]` float32 y.
      streamed: `[n]` int32 local classes, ascending.

    Returns:
      `Targets` on the streamed classes, and `Targets` on the others, whose `column` is the local class itself.
    """
    flat = tf.reshape(columns, [-1])
    position = tf.searchsorted(streamed, flat)
    is_streamed = tf.searchsorted(streamed, flat, side="right") > position
    on_streamed = tf.reshape(tf.where(is_streamed, position, -1), tf.shape(columns))
    on_others = tf.reshape(tf.where(is_streamed, -1, flat), tf.shape(columns))
    return select_targets(on_streamed, labels), select_targets(on_others, labels)


def sample_classes(num_instances: int, size: int, seed: int, step: tf.Tensor | int) -> tf.Tensor:
    """Table 3's sample: a uniform one of all classes, without repetition, whatever the batch is.

    Args:
      num_instances: N.
      size: S, how many classes; 1 to N.
      seed: of all samples of a run.
      step: scalar integer; the same on all workers.

    Returns:
      `[S]` int32 distinct class ids in ascending order, the same on all workers.
    """
    # Single places of a permutation: nothing of the size of N is made.
    places = tf.range(size, dtype=tf.int64)
    return tf.sort(tf.cast(permutation.permute(places, seed, step, num_instances, permutation.CLASS_SAMPLE), tf.int32))
