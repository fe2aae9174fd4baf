"""What a method of pretraining is to the training loop: a loss, and what changes in it during a run."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Protocol

import tensorflow as tf

from instcls_tf.classifier.hard_negatives import HardNegatives
from instcls_tf.classifier.output import Move
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.run.parts import Slices

# What a batch tells: `LossOutput`, or a named tuple that has its fields and more.
Output = Any
# From this worker's embeddings [b, D] and ids [b] without padding to the loss of the global batch, not checked to be
# finite, and what moves the method's own weights.
LossOfRows = Callable[[tf.Tensor, tf.Tensor], "tuple[Output, Move]"]
# Encodes views [b, V, H, W, 3] of instances [b], -1 for padding, and moves the network by the loss of their rows, and
# then the method's own weights; or neither, if the numbers of the step are not finite.
Learn = Callable[[tf.Tensor, tf.Tensor, LossOfRows], Output]


class StepBatch(NamedTuple):
    """This worker's share of a step."""

    views: tf.Tensor  # [b, V, H, W, 3]
    instance_ids: tf.Tensor  # [b] int32, -1 for padding
    learning_rate: tf.Tensor  # scalar float32
    step: tf.Tensor  # scalar integer, the same on all workers
    micro_batch: int  # instances per BN group


class Method(Protocol):
    """What `--method` chooses; the training loop asks for nothing else."""

    @property
    def classifier(self) -> ShardedClassifier | None:
        """Whose class weights come from the contrastive prior; None for methods without."""

    @property
    def hard_negatives(self) -> HardNegatives | None:
        """Whose lists every epoch renews; None for methods without."""

    @property
    def note(self) -> str:
        """A sentence for people when a run begins."""

    def network(self, encoder: tf.keras.Model) -> tf.keras.Model:
        """What of the encoder is trained."""

    def replicated(self) -> dict[str, Any]:
        """What a checkpoint keeps once, by its name there: variables and modules that are equal on all workers."""

    def sliced(self) -> dict[str, Slices]:
        """What a checkpoint keeps of each worker, by its name there."""

    def train(self, batch: StepBatch, learn: Learn) -> Output:
        """One training step inside a `tf.function`; all workers together.

        Args:
          batch: this worker's share.
          learn: to be called once, with what the network is to learn from.
        """


class Loss(Protocol):
    """A loss of the rows of all views, as the encoder gives them."""

    def prepare(
        self, embeddings: tf.Tensor, instance_ids: tf.Tensor, learning_rate: tf.Tensor, step: tf.Tensor
    ) -> tuple[Output, Move]:
        """From embeddings `[b, D]` and ids `[b]` without padding to what the global batch tells, as `LossOfRows`."""


def learn_from_all_views(loss: Loss, batch: StepBatch, learn: Learn) -> Output:
    """`Method.train` of methods whose loss takes all views alike."""

    def of_rows(rows: tf.Tensor, ids: tf.Tensor) -> tuple[Output, Move]:
        return loss.prepare(rows, ids, batch.learning_rate, batch.step)

    return learn(batch.views, batch.instance_ids, of_rows)
