"""SimCLR: views of an image attract each other and repel all other rows of the batch; nothing else to keep.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv:2002.05709). Its
encoder (backbone, two-layer head) and views are this package's own; its LARS optimiser belongs to the training loop.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from instcls_tf.classifier.output import LossOutput, Move, move_nothing, moved
from instcls_tf.config import SIMCLR, TEMPERATURES
from instcls_tf.methods.method import Learn, Output, StepBatch, learn_from_all_views
from instcls_tf.methods.nt_xent import nt_xent
from instcls_tf.run.parts import Slices


class SimCLR(tf.Module):
    """NT-Xent over the global batch of all workers; without variables.

    Args:
      temperature: tau of Eq. 1; .1 is the paper's for ImageNet, .5 for CIFAR-10.
      name: of the messages across the workers.
    """

    classifier = hard_negatives = None
    note = "no class weights; prior, smoothing and hard negatives play no part"

    def __init__(self, *, temperature: float = TEMPERATURES[SIMCLR], name: str = "simclr"):
        super().__init__(name=name)
        self.temperature = temperature

    def network(self, encoder: tf.keras.Model) -> tf.keras.Model:
        """All of the encoder."""
        return encoder

    def replicated(self) -> dict[str, Any]:
        """Nothing for a checkpoint to keep."""
        return {}

    def sliced(self) -> dict[str, Slices]:
        """Nothing for a checkpoint to keep."""
        return {}

    def train(self, batch: StepBatch, learn: Learn) -> Output:
        """As `Method` has it."""
        return learn_from_all_views(self, batch, learn)

    def __call__(
        self,
        embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        learning_rate: tf.Tensor | float | None = None,
        step: tf.Tensor | int = 0,
    ) -> LossOutput:
        """The loss of the global batch of which this worker holds a part; see `nt_xent`.

        Args:
          embeddings: `[b, D]`, the rows of all views of this worker's instances.
          instance_ids: `[b]` integers; the views of an instance share one.
          learning_rate: of methods with weights of their own.
          step: of methods that draw something.

        Raises:
          InvalidArgumentError: the loss is not finite; on all workers alike.
        """
        return moved(*self.prepare(embeddings, instance_ids, learning_rate, step))

    def prepare(
        self,
        embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        learning_rate: tf.Tensor | float | None = None,
        step: tf.Tensor | int = 0,
    ) -> tuple[LossOutput, Move]:
        """As `__call__`, but the loss is not checked, and nothing moves when the second result is called."""
        del learning_rate, step
        return nt_xent(embeddings, instance_ids, self.temperature, self.name), move_nothing
