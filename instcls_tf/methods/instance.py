"""The paper's method: instance classification with smoothing over hard negatives; with a contrastive loss if wanted."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from instcls_tf.classifier.expected_loss import expected_losses
from instcls_tf.classifier.hard_negatives import HardNegatives
from instcls_tf.classifier.output import LossOutput, Move
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import PretrainConfig
from instcls_tf.methods.class_tables import scales_key
from instcls_tf.methods.method import Learn, Output, StepBatch, learn_from_all_views
from instcls_tf.methods.nt_xent import nt_xent
from instcls_tf.run.parts import Slices

# Of the class weights in a checkpoint; the name is that of the first runs.
CLASS_WEIGHTS_KEY = "classifier/rows"
CLASS_MOMENTUM_KEY = "classifier/momentum"
# Of the lists of hard negatives in a checkpoint of mid-epoch.
HARD_NEGATIVES_KEY = "classifier/hard_negatives"


class ContrastedOutput(NamedTuple):
    """`LossOutput` where NT-Xent is added."""

    loss: tf.Tensor  # scalar float32: the sum, which is minimised
    instance_top1: tf.Tensor  # scalar float32, of the classification
    contrast_loss: tf.Tensor  # scalar float32: NT-Xent, before its weight


class InstanceClassification:
    """The classifier, its lists of hard negatives, and NT-Xent between the views of the batch.

    NT-Xent (`--batch_contrast`) asks for the own instance among the batch beside the own class among all N: other rows
    of the batch answer at once, where class weights are as old as the instance's last visit. It moves the encoder only;
    class weights move by the classification alone.

    Args:
      classifier: of all N instances.
      hard_negatives: of its classes; None without smoothing.
      batch_contrast: the weight of NT-Xent in the sum; 0 leaves it out.
      batch_contrast_temperature: its tau.
    """

    def __init__(
        self,
        classifier: ShardedClassifier,
        hard_negatives: HardNegatives | None = None,
        batch_contrast: float = PretrainConfig.batch_contrast,
        batch_contrast_temperature: float = PretrainConfig.batch_contrast_temperature,
    ):
        self.classifier, self.hard_negatives = classifier, hard_negatives
        self.batch_contrast, self.batch_contrast_temperature = batch_contrast, batch_contrast_temperature

    @property
    def note(self) -> str:
        """Between what the loss will move."""
        layer = self.classifier
        expected = expected_losses(layer.num_instances, layer.embedding_size, layer.temperature, layer.sampled_classes)
        return (
            f"for orientation, the loss of Eq. 1 from Gaussian class weights starts near"
            f" {expected['loss_expected_start']:.2f}, cannot fall below about {expected['loss_floor']:.2f}"
        )

    def network(self, encoder: tf.keras.Model) -> tf.keras.Model:
        """All of the encoder."""
        return encoder

    def replicated(self) -> dict[str, Any]:
        """Nothing: all of it is split over the workers."""
        return {}

    def sliced(self) -> dict[str, Slices]:
        """Class weights and momentum. Lists matter in mid-epoch only, and are kept by the run."""
        classes, total = self.classifier.classes, self.classifier.num_instances
        tables = {CLASS_WEIGHTS_KEY: classes.weights, CLASS_MOMENTUM_KEY: classes.momentum}
        return {
            name: Slices(variable, classes.first, total)
            for key, table in tables.items()
            for name, variable in ((key, table.values), (scales_key(key), table.scales))
            if variable is not None
        }

    def train(self, batch: StepBatch, learn: Learn) -> Output:
        """As `Method` has it."""
        return learn_from_all_views(self, batch, learn)

    def prepare(
        self, embeddings: tf.Tensor, instance_ids: tf.Tensor, learning_rate: tf.Tensor, step: tf.Tensor
    ) -> tuple[LossOutput | ContrastedOutput, Move]:
        """Steps 2 to 8 of the paper for the batch of which this worker holds a part; all workers together.

        Args:
          embeddings: `[b, D]`, without padding.
          instance_ids: `[b]` int32.
          learning_rate: of this step.
          step: its number.

        Returns:
          What the batch tells, whose loss is not checked to be finite; and what moves the class weights (step 8).
        """
        output, move = self.classifier.prepare(embeddings, instance_ids, self.hard_negatives, learning_rate, step)
        if not self.batch_contrast:
            return output, move
        contrast = nt_xent(embeddings, instance_ids, self.batch_contrast_temperature, "batch_contrast")
        total = output.loss + self.batch_contrast * contrast.loss
        return ContrastedOutput(total, output.instance_top1, contrast.loss), move
