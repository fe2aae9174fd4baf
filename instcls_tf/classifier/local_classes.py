"""The classes that a worker owns: their weights and momentum, and how a step of SGD moves some of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from instcls_tf.classifier import stochastic_rounding
from instcls_tf.optimizer import momentum_update


class Sgd(NamedTuple):
    """One step of SGD, as in `optimizer.momentum_update`."""

    learning_rate: tf.Tensor  # scalar float32
    momentum_factor: float
    weight_decay: float
    seed: tf.Tensor  # scalar int32, of the rounding to bfloat16, see `stochastic_rounding.py`


@dataclasses.dataclass(frozen=True)
class LocalClasses:
    """Variables of the classes `first`, `first + 1`, …, each of which is here a local class 0, 1, …

    Args:
      weights: `[num_local, D]` float32 or bfloat16.
      momentum: the same.
      first: the id of local class 0.
    """

    weights: tf.Variable
    momentum: tf.Variable
    first: int

    @property
    def count(self) -> int:
        """How many classes this worker owns."""
        return self.weights.shape[0]

    def read(self, local: tf.Tensor) -> tf.Tensor:
        """The weights `[m, D]` float32 of some local classes; never touches the others (`read_value()` copies all)."""
        return tf.cast(self.weights.sparse_read(local), tf.float32)

    def write(self, local: tf.Tensor, weights: tf.Tensor) -> None:
        """Replaces the weights of some local classes by `[m, D]` float32, which begin without momentum."""
        self.weights.scatter_update(tf.IndexedSlices(tf.cast(weights, self.weights.dtype), local))
        self.momentum.scatter_update(tf.IndexedSlices(tf.zeros_like(weights, self.momentum.dtype), local))

    def move(self, local: tf.Tensor, weights: tf.Tensor, gradients: tf.Tensor, sgd: Sgd) -> tf.Operation:
        """Makes one step of SGD.

        Args:
          local: `[m]` int32 local classes, none twice.
          weights: `[m, D]` float32, what `read` returned for them.
          gradients: `[m, D]` of the mean loss.
          sgd: the step.
        """
        momentum = tf.cast(self.momentum.sparse_read(local), tf.float32)  # [m, D]
        weights, momentum = momentum_update(
            weights,
            gradients,
            momentum,
            learning_rate=sgd.learning_rate,
            momentum_factor=sgd.momentum_factor,
            weight_decay=sgd.weight_decay,
        )
        self._store(self.momentum, local, momentum, sgd.seed, stochastic_rounding.MOMENTUM)
        return self._store(self.weights, local, weights, sgd.seed, stochastic_rounding.WEIGHTS)

    def _store(
        self, variable: tf.Variable, local: tf.Tensor, values: tf.Tensor, seed: tf.Tensor, part: int
    ) -> tf.Operation:
        values = stochastic_rounding.round_for(variable, values, self.first + local, seed, part)
        return variable.scatter_update(tf.IndexedSlices(values, local))
