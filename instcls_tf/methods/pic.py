"""PIC: parametric instance classification with recent negatives and the correction of weights that stayed out.

Source: Cao et al., "Parametric Instance Classification for Unsupervised Visual Feature Learning" (arXiv:2006.14618).
Cosine softmax over instance classes with a temperature; the classes of a step are those of the batch and of the
instances visited last. Classes outside have no gradient, but weight decay and momentum would move them:

  u <- m u + lambda w,  w <- w - eta u,   that is  (w, u) <- A (w, u),  A = [[1 - eta lambda, -eta m], [lambda, m]].

They are moved when they come back, by the product of the A of all steps they missed. The paper's closed form is the
power of one A, at a constant rate; here every step's own rate counts, so that training equals an update of all N
classes at every step. (The authors' published code has neither the sampling nor the correction.) The paper's order of
images is `instcls_tf.data.sliding_window`.
"""

from __future__ import annotations

import tensorflow as tf

from instcls_tf import config as recipe
from instcls_tf.classifier.directions import SMALLEST_NORM, Directions, directions_of
from instcls_tf.classifier.initial_weights import drawn_blocks
from instcls_tf.classifier.output import LossOutput, Move, differentiable
from instcls_tf.config import PretrainConfig
from instcls_tf.distributed import collectives
from instcls_tf.methods import class_softmax
from instcls_tf.methods.rival import Rival
from instcls_tf.optimizer import momentum_update
from instcls_tf.run.parts import Slices

# The most steps for which a class that stays away is moved: a table of 2 MB, which a step copies.
LONGEST_ABSENCE = 65536


class PIC(Rival):
    """The class weights of N instances, split over the workers, and what tells how they moved.

    Args:
      num_instances: N.
      embedding_size: D.
      temperature: tau.
      recent_negatives: how many distinct instances before the batch give a step's negatives.
      momentum: m, of the weights' SGD.
      weight_decay: lambda, the L2 coefficient.
      learning_rate_factor: multiplies the learning rate of each step.
      longest_absence: in steps; a class that stays away longer is moved as if it had been away so long.
      seed: of the initial weights, Gaussian with standard deviation .01 as in the authors' code.
      name: of the messages across the workers.
    """

    note = "Gaussian class weights; prior, smoothing and hard negatives play no part"

    def __init__(
        self,
        num_instances: int,
        embedding_size: int,
        *,
        temperature: float = recipe.TEMPERATURES[recipe.PIC],
        recent_negatives: int = PretrainConfig.pic_recent_negatives,
        momentum: float = PretrainConfig.momentum,
        weight_decay: float = PretrainConfig.weight_decay,
        learning_rate_factor: float = PretrainConfig.classifier_learning_rate_factor,
        longest_absence: int = LONGEST_ABSENCE,
        seed: int = PretrainConfig.seed,
        name: str = "pic",
    ):
        super().__init__(name=name)
        self.num_instances, self.temperature = num_instances, temperature
        self.momentum_factor, self.weight_decay = momentum, weight_decay
        self.learning_rate_factor = learning_rate_factor
        self.begin, self.end = collectives.own_bounds(num_instances)

        def draw(shape: list[int], seed: list[int]) -> tf.Tensor:
            return 0.01 * tf.random.stateless_normal(shape, seed)

        blocks = drawn_blocks(draw, (self.begin, self.end), num_instances, embedding_size, seed)
        weights = tf.concat([tf.zeros([0, embedding_size]), *(block for _, block in blocks)], axis=0)
        kept = {"trainable": False}
        self.local_weights = tf.Variable(weights, name="rows", **kept)  # [n, D]
        self.local_momentum = tf.Variable(tf.zeros_like(weights), name="momentum", **kept)
        self.local_moves = tf.Variable(tf.zeros([self.end - self.begin], tf.int32), name="moves", **kept)
        self.moves = tf.Variable(0, name="steps", **kept)  # training steps; `local_moves` has those of each class
        self.recent = tf.Variable(tf.fill([recent_negatives], -1), name="recent", **kept)  # the newest first
        # Entry k is the product of the last k steps' A. float64, since thousands of them are multiplied.
        identities = tf.eye(2, batch_shape=[longest_absence + 1], dtype=tf.float64)
        self.transitions = tf.Variable(identities, name="transitions", **kept)

    def replicated(self) -> dict[str, tf.Variable]:
        """What a checkpoint keeps once, by its name there; equal on all workers."""
        return {"pic_moves": self.moves, "pic_recent": self.recent, "pic_transitions": self.transitions}

    def sliced(self) -> dict[str, Slices]:
        """What a checkpoint keeps of each worker, by its name there."""
        parts = {"pic/rows": self.local_weights, "pic/momentum": self.local_momentum, "pic/moves": self.local_moves}
        return {name: Slices(part, self.begin, self.num_instances) for name, part in parts.items()}

    def prepare(
        self,
        embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        learning_rate: tf.Tensor | float,
        step: tf.Tensor | int,
    ) -> tuple[LossOutput, Move]:
        """The loss of the global batch of which this worker holds a part; all workers together.

        To be called inside a `tf.function` when there are several workers.

        Args:
          embeddings: `[b, D]` of any float dtype and length; b may differ between workers and be 0.
          instance_ids: `[b]` integers in [0, N); several rows (views) may share one.
          learning_rate: of this step's update of the weights.
          step: of methods that draw something.

        Returns:
          `LossOutput`, whose loss is not checked to be finite and whose `instance_top1` is among the classes of the
          step; and what moves the weights and notes the step.
        """
        del step
        normalized = tf.math.l2_normalize(tf.cast(embeddings, tf.float32), axis=1, epsilon=SMALLEST_NORM**2)  # [b, D]
        all_embeddings = collectives.all_gather(tf.stop_gradient(normalized), f"{self.name}_embeddings")  # [B, D]
        ids, is_own = collectives.all_gather_ids(tf.cast(instance_ids, tf.int32), f"{self.name}_ids")  # [B]
        visited = tf.unique(tf.concat([ids, self.recent[self.recent >= 0]], axis=0))[0]  # distinct, the newest first
        classes = tf.sort(visited)
        local = classes[(classes >= self.begin) & (classes < self.end)] - self.begin  # [n]
        weights, momentum = self._caught_up(local)  # [n, D]
        directions = directions_of(weights)

        def read(begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
            return directions.unit[begin:end] / self.temperature

        # Other workers' classes must not be found between this worker's.
        is_local = (ids >= self.begin) & (ids < self.end)
        columns = tf.where(is_local, tf.searchsorted(local, ids - self.begin), -1)
        batch = class_softmax.ClassBatch(all_embeddings, columns, is_own, 0.0, self.num_instances)
        softmax = class_softmax.forward(read, tf.size(local), batch, self.name)
        output = LossOutput(differentiable(softmax.loss, normalized, softmax.gradient), softmax.instance_top1)
        rate = self.learning_rate_factor * tf.cast(learning_rate, tf.float32)

        def move_tile(begin: tf.Tensor, end: tf.Tensor, gradient: tf.Tensor) -> None:
            of_tile = Directions(*(part[begin:end] for part in directions))
            gradient = of_tile.through_norm(gradient / self.temperature)
            self._move(local[begin:end], weights[begin:end], gradient, momentum[begin:end], rate)

        def move() -> None:
            class_softmax.backward(read, move_tile, tf.size(local), batch, softmax.log_denominator)
            self._remember(visited, local, rate)

        return output, move

    def _caught_up(self, local: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Weights and momentum `[n, D]` of some classes, as if they had moved in the steps they missed."""
        missed = tf.minimum(self.moves - self.local_moves.sparse_read(local), self.transitions.shape[0] - 1)
        transition = tf.cast(self.transitions.sparse_read(missed), tf.float32)[..., tf.newaxis]  # [n, 2, 2, 1]
        weights, momentum = self.local_weights.sparse_read(local), self.local_momentum.sparse_read(local)
        now = [transition[:, part, 0] * weights + transition[:, part, 1] * momentum for part in (0, 1)]
        return now[0], now[1]

    def _move(
        self, index: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, momentum: tf.Tensor, rate: tf.Tensor
    ) -> None:
        sgd = {"momentum_factor": self.momentum_factor, "weight_decay": self.weight_decay}
        weights, momentum = momentum_update(weights, gradient, momentum, learning_rate=rate, **sgd)
        self.local_weights.scatter_update(tf.IndexedSlices(weights, index))
        self.local_momentum.scatter_update(tf.IndexedSlices(momentum, index))

    def _remember(self, visited: tf.Tensor, local: tf.Tensor, rate: tf.Tensor) -> None:
        """Counts the step, for the classes that moved in it and for those that did not."""
        moves = self.moves.assign_add(1)
        self.local_moves.scatter_update(tf.IndexedSlices(tf.fill([tf.size(local)], moves), local))
        size = self.recent.shape[0]
        self.recent.assign(tf.pad(visited[:size], [[0, size - tf.minimum(tf.size(visited), size)]], constant_values=-1))
        rate = tf.cast(rate, tf.float64)
        of_weights = [1.0 - rate * self.weight_decay, -rate * self.momentum_factor]
        of_momentum = tf.constant([self.weight_decay, self.momentum_factor], tf.float64)
        transition = tf.stack([tf.stack(of_weights), of_momentum])  # A
        after = tf.einsum("ij,kjl->kil", transition, self.transitions[:-1])
        self.transitions.assign(tf.concat([tf.eye(2, batch_shape=[1], dtype=tf.float64), after], axis=0))
