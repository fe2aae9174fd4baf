"""Sampled classification (Table 3): rows' own classes that are not in the sample, as a sparse extra to the passes.

A row's softmax runs over its own class and S sampled classes, the same for all rows of a step; other rows' classes take
part where they are in the sample. The passes stream the sample. What is left are own classes outside of it, one for
each of some rows: dot products instead of matrix products, in float32 whatever the dtype of products is.

Shapes use the legend of `softmax.py`; besides: m rows whose own class is this worker's and not sampled, u such classes.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from instcls_tf.classifier.directions import Directions, directions_of
from instcls_tf.classifier.labels import Targets
from instcls_tf.classifier.local_classes import LocalClasses, Sgd
from instcls_tf.classifier.softmax import (
    Batch,
    PartialSums,
    Passes,
    Shift,
    Softmax,
    Totals,
    target_shares,
    target_terms,
)


class _Unsampled(NamedTuple):
    """This worker's own classes outside of the sample."""

    local: tf.Tensor  # [u] int32 local classes
    weights: tf.Tensor  # [u, D] as stored
    directions: Directions
    targets: Targets  # [m]; column: which of the u classes
    logits: tf.Tensor  # [m]
    exp: tf.Tensor  # [m]


class SampledPasses:
    """`softmax.Passes` over the sample by other passes, and over own classes outside of it here.

    Args:
      passes: stream the sample.
      classes: this worker's.
      softmax: which one.
    """

    def __init__(self, passes: Passes, classes: LocalClasses, softmax: Softmax):
        self._passes, self._classes, self._softmax = passes, classes, softmax

    def local_maxima(self, batch: Batch) -> Shift | None:
        """As `softmax.Passes` has it."""
        maxima = self._passes.local_maxima(batch)
        if maxima is None:
            return None
        own = self._read(batch)
        logits = tf.math.unsorted_segment_max(own.logits, own.targets.row, tf.shape(batch.embeddings)[0])  # [B]
        return Shift(tf.maximum(maxima.logits, logits), tf.maximum(maxima.targets, logits))

    def forward(self, batch: Batch) -> PartialSums:
        """As `softmax.Passes` has it."""
        sums, own = self._passes.forward(batch), self._read(batch)
        terms, factors = target_terms(own.logits, own.targets, batch.shift, self._softmax.smoothing_loss)
        unit = tf.gather(own.directions.unit, own.targets.column)  # [m, D]

        def add(total: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
            return total + tf.math.unsorted_segment_sum(values, own.targets.row, tf.shape(total)[0])  # [B, ...]

        return PartialSums(
            exp_sum=add(sums.exp_sum, own.exp),
            target_sum=add(sums.target_sum, terms),
            own_logit=add(sums.own_logit, own.logits),
            max_negative=sums.max_negative,
            exp_weights=add(sums.exp_weights, own.exp[:, tf.newaxis] * unit),
            target_weights=add(sums.target_weights, factors[:, tf.newaxis] * unit),
        )

    def backward(self, batch: Batch, totals: Totals, sgd: Sgd) -> None:
        """As `softmax.Passes` has it: every class that took part is moved once, here or there."""
        self._passes.backward(batch, totals, sgd)
        own, loss = self._read(batch), self._softmax.smoothing_loss
        _, factors = target_terms(own.logits, own.targets, batch.shift, loss)
        probabilities = own.exp / tf.gather(totals.exp_sum, own.targets.row)  # [m] p_ii
        residuals = probabilities - target_shares(factors, own.targets, totals, loss)  # [m]
        batch_rows = tf.cast(tf.shape(batch.embeddings)[0], tf.float32)
        mean = tf.gather(batch.embeddings, own.targets.row) / self._softmax.temperature / batch_rows  # [m, D]
        gradients = tf.math.unsorted_segment_sum(
            residuals[:, tf.newaxis] * mean, own.targets.column, tf.size(own.local)
        )  # [u, D] for w^
        self._classes.move(own.local, own.weights, own.directions.through_norm(gradients), sgd)

    def _read(self, batch: Batch) -> _Unsampled:
        assert batch.unsampled is not None, "a batch without a sample"
        local, place = tf.unique(batch.unsampled.column)  # several rows (views) may share a class
        targets = batch.unsampled._replace(column=place)
        weights = self._classes.read(local)
        directions = directions_of(weights)
        embeddings = tf.gather(batch.embeddings, targets.row) / self._softmax.temperature  # [m, D]
        logits = tf.reduce_sum(embeddings * tf.gather(directions.unit, place), axis=1)  # [m]
        shifted = logits if batch.shift is None else logits - tf.gather(batch.shift.logits, targets.row)
        return _Unsampled(local, weights, directions, targets, logits, tf.exp(shifted))
