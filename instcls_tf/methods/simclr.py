"""SimCLR: views of an image attract each other and repel all other rows of the batch; nothing else to keep.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv:2002.05709). Its
encoder (backbone, two-layer head) and views are this package's own; its LARS optimiser belongs to the training loop.
"""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.classifier.output import LossOutput, Move, move_nothing
from instcls_tf.config import SIMCLR, TEMPERATURES
from instcls_tf.methods.nt_xent import nt_xent
from instcls_tf.methods.rival import Rival


class SimCLR(Rival):
    """NT-Xent over the global batch of all workers; without variables.

    Args:
      temperature: tau of Eq. 1; .1 is the paper's for ImageNet, .5 for CIFAR-10.
      name: of the messages across the workers.
    """

    note = "no class weights; prior, smoothing and hard negatives play no part"

    def __init__(self, *, temperature: float = TEMPERATURES[SIMCLR], name: str = "simclr"):
        super().__init__(name=name)
        self.temperature = temperature

    def prepare(
        self,
        embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        learning_rate: tf.Tensor | float,
        step: tf.Tensor | int,
    ) -> tuple[LossOutput, Move]:
        """The loss of the global batch of which this worker holds a part; see `nt_xent`.

        Args:
          embeddings: `[b, D]`, the rows of all views of this worker's instances.
          instance_ids: `[b]` integers; the views of an instance share one.
          learning_rate: of methods with weights of their own.
          step: of methods that draw something.

        Returns:
          `LossOutput`, whose loss is not checked to be finite; and what moves nothing.
        """
        del learning_rate, step
        return nt_xent(embeddings, instance_ids, self.temperature, self.name), move_nothing
