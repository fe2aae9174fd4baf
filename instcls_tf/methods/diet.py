"""DIET: the datum's index is its class, for a plain linear classifier on the backbone's features.

Sources: Balestriero, "Unsupervised Learning on a DIET: Datum IndEx as Target" (arXiv:2302.10260); Ibrahim et al.,
"Occam's Razor for Self Supervised Learning" (arXiv:2406.10743). No projection, no prior, logits without normalisation
and bias, cross-entropy with strong uniform label smoothing:

  J = mean_i [ -sum_j y_ij log softmax_j( w_j . x_i ) ],  y_ij = (1 - alpha) [j = i] + alpha / N.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from instcls_tf.classifier.initial_weights import drawn_blocks
from instcls_tf.classifier.output import LossOutput, Move, differentiable
from instcls_tf.config import ADAMW, ADAMW_WEIGHT_DECAY, DIET_OPTIMIZERS, SGD, PretrainConfig
from instcls_tf.distributed import collectives
from instcls_tf.methods import class_softmax
from instcls_tf.methods.rival import Rival
from instcls_tf.optimizer import momentum_update
from instcls_tf.run.parts import Slices


class DIET(Rival):
    """The linear classifier over N instances, whose weights are split over the workers and moved by themselves.

    A step moves the weights tile by tile.

    Args:
      num_instances: N.
      feature_size: D, of the backbone's features.
      label_smoothing: alpha.
      optimizer: of the weights: `adamw` (the paper's) or `sgd` (with momentum and L2 decay, as this package's encoder).
      weight_decay: decoupled for AdamW (the paper: 0.05), L2 for SGD.
      momentum: the momentum factor of SGD.
      learning_rate_factor: multiplies the learning rate of each step; the paper's rate for AdamW is 1e-3 at a batch of
        256.
      seed: of the initial weights, uniform in +-1 / sqrt(D) as torch's linear layer.
      name: of the messages across the workers.
    """

    note = "a linear classifier on the backbone; prior and hard negatives play no part, the projection stays untrained"

    def __init__(
        self,
        num_instances: int,
        feature_size: int,
        *,
        label_smoothing: float = PretrainConfig.diet_label_smoothing,
        optimizer: str = PretrainConfig.diet_optimizer,
        weight_decay: float = ADAMW_WEIGHT_DECAY,
        momentum: float = PretrainConfig.momentum,
        learning_rate_factor: float = PretrainConfig.classifier_learning_rate_factor,
        seed: int = PretrainConfig.seed,
        name: str = "diet",
    ):
        super().__init__(name=name)
        if optimizer not in DIET_OPTIMIZERS:
            raise ValueError(f"optimizer={optimizer!r}: must be one of {DIET_OPTIMIZERS}")
        self.num_instances, self.label_smoothing = num_instances, label_smoothing
        self.optimizer, self.weight_decay, self.momentum_factor = optimizer, weight_decay, momentum
        self.learning_rate_factor = learning_rate_factor
        self.begin, self.end = collectives.own_bounds(num_instances)

        def draw(shape: list[int], seed: list[int]) -> tf.Tensor:
            return tf.random.stateless_uniform(shape, seed, -(feature_size**-0.5), feature_size**-0.5)

        blocks = drawn_blocks(draw, (self.begin, self.end), num_instances, feature_size, seed)
        weights = tf.concat([tf.zeros([0, feature_size]), *(block for _, block in blocks)], axis=0)
        self.local_weights = tf.Variable(weights, trainable=False, name="rows")  # [n, D]
        self.local_momentum = tf.Variable(tf.zeros_like(weights), trainable=False, name="momentum")
        if optimizer == ADAMW:
            self.local_variance = tf.Variable(tf.zeros_like(weights), trainable=False, name="variance")
        self.moves = tf.Variable(0, trainable=False, name="moves")  # training steps, for AdamW's bias correction

    def network(self, encoder: tf.keras.Model) -> tf.keras.Model:
        """The backbone: there is no projection."""
        return encoder.get_layer("backbone")

    def replicated(self) -> dict[str, tf.Variable]:
        """What a checkpoint keeps once, by its name there; equal on all workers."""
        return {"diet_moves": self.moves}

    def sliced(self) -> dict[str, Slices]:
        """What a checkpoint keeps of each worker, by its name there."""
        parts = {"diet/rows": self.local_weights, "diet/momentum": self.local_momentum}
        if self.optimizer == ADAMW:
            parts["diet/variance"] = self.local_variance
        return {name: Slices(part, self.begin, self.num_instances) for name, part in parts.items()}

    def prepare(
        self,
        features: tf.Tensor,
        instance_ids: tf.Tensor,
        learning_rate: tf.Tensor | float,
        step: tf.Tensor | int,
    ) -> tuple[LossOutput, Move]:
        """The loss of the global batch of which this worker holds a part; all workers together.

        To be called inside a `tf.function` when there are several workers.

        Args:
          features: `[b, D]` of any float dtype; b may differ between workers and be 0.
          instance_ids: `[b]` integers in [0, N); several rows (views) may share one.
          learning_rate: of this step's update of the weights.
          step: of methods that draw something.

        Returns:
          `LossOutput`, whose loss is not checked to be finite; and what moves the weights, by a gradient from before
          they moved.
        """
        del step
        features = tf.cast(features, tf.float32)
        all_features = collectives.all_gather(tf.stop_gradient(features), f"{self.name}_features")  # [B, D]
        ids, is_own = collectives.all_gather_ids(tf.cast(instance_ids, tf.int32), f"{self.name}_ids")  # [B]
        columns = ids - self.begin
        batch = class_softmax.ClassBatch(all_features, columns, is_own, self.label_smoothing, self.num_instances)
        softmax = class_softmax.forward(self._read, self.end - self.begin, batch, self.name)
        output = LossOutput(differentiable(softmax.loss, features, softmax.gradient), softmax.instance_top1)
        rate = self.learning_rate_factor * tf.cast(learning_rate, tf.float32)

        def move_tile(begin: tf.Tensor, end: tf.Tensor, gradient: tf.Tensor) -> None:
            self._move(tf.range(begin, end), gradient, rate)

        def move() -> None:
            self.moves.assign_add(1)
            class_softmax.backward(self._read, move_tile, self.end - self.begin, batch, softmax.log_denominator)

        return output, move

    def _read(self, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
        return self.local_weights.sparse_read(tf.range(begin, end))

    def _move(self, index: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> None:
        slots = [self.local_weights, self.local_momentum]
        values = [slot.sparse_read(index) for slot in slots]
        if self.optimizer == SGD:
            sgd = {"momentum_factor": self.momentum_factor, "weight_decay": self.weight_decay}
            new: tuple = momentum_update(values[0], gradient, values[1], learning_rate=rate, **sgd)
        else:
            slots.append(self.local_variance)
            variance = self.local_variance.sparse_read(index)
            moves = tf.cast(self.moves, tf.float32)
            new = adamw_update(values[0], values[1], variance, gradient, rate, self.weight_decay, moves)
        for slot, value in zip(slots, new):
            slot.scatter_update(tf.IndexedSlices(value, index))


def adamw_update(
    variable: Any, momentum: Any, variance: Any, gradient: Any, rate: Any, weight_decay: float, moves: Any
) -> tuple[Any, Any, Any]:
    """One step of AdamW as in `torch.optim.AdamW`, with its betas .9 and .999 and its epsilon 1e-8.

    Keras' own works on whole variables only, not on tiles of one.

    Args:
      variable: what is to move; the others but the last three have its shape.
      momentum: running mean of the gradient.
      variance: running mean of its square.
      gradient: of the loss.
      rate: learning rate.
      weight_decay: decoupled.
      moves: steps so far, this one included, for the bias correction.

    Returns:
      New `(variable, momentum, variance)`.
    """
    momentum = 0.9 * momentum + 0.1 * gradient
    variance = 0.999 * variance + 0.001 * gradient**2
    step = momentum / (1.0 - 0.9**moves) / (tf.sqrt(variance / (1.0 - 0.999**moves)) + 1e-8)
    return variable - rate * (step + weight_decay * variable), momentum, variance
