"""The classes that a worker owns: their weights and momentum, and how a step of SGD moves some of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from instcls_tf.classifier.stochastic_rounding import MOMENTUM, WEIGHTS, Draw
from instcls_tf.classifier.table import Table
from instcls_tf.optimizer import momentum_update


class Sgd(NamedTuple):
    """One step of SGD, as in `optimizer.momentum_update`."""

    learning_rate: tf.Tensor  # scalar float32
    momentum_factor: float
    weight_decay: float
    seed: tf.Tensor  # scalar int32, of the rounding, see `stochastic_rounding.py`


@dataclasses.dataclass(frozen=True)
class LocalClasses:
    """Tables of the classes `first`, `first + 1`, …, each of which is here a local class 0, 1, …

    Args:
      weights: `[num_local, D]`.
      momentum: the same.
      first: the id of local class 0.
    """

    weights: Table
    momentum: Table
    first: int

    @property
    def count(self) -> int:
        """How many classes this worker owns."""
        return self.weights.values.shape[0]

    @property
    def embedding_size(self) -> int:
        """D."""
        return self.weights.values.shape[1]

    def read(self, local: tf.Tensor) -> tf.Tensor:
        """The weights `[m, D]` float32 of some local classes."""
        return self.weights.read(local)

    def write(self, local: tf.Tensor, weights: tf.Tensor) -> None:
        """Replaces the weights of some local classes by `[m, D]` float32, which begin without momentum."""
        self.weights.write(local, weights)
        self.momentum.write(local, tf.zeros_like(weights))

    def move(self, local: tf.Tensor, weights: tf.Tensor, gradients: tf.Tensor, sgd: Sgd) -> tf.Operation:
        """Makes one step of SGD.

        Args:
          local: `[m]` int32 local classes, none twice.
          weights: `[m, D]` float32, what `read` returned for them.
          gradients: `[m, D]` of the mean loss.
          sgd: the step.
        """
        weights, momentum = momentum_update(
            weights,
            gradients,
            self.momentum.read(local),
            learning_rate=sgd.learning_rate,
            momentum_factor=sgd.momentum_factor,
            weight_decay=sgd.weight_decay,
        )
        ids = self.first + local
        self.momentum.move(local, momentum, Draw(ids, sgd.seed, MOMENTUM))
        return self.weights.move(local, weights, Draw(ids, sgd.seed, WEIGHTS))
