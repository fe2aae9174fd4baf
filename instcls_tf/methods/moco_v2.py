"""MoCo v2: a query is to find its own key, from a slowly moving encoder, among a queue of the keys of past batches.

Sources: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (arXiv:1911.05722), Eq. 1, Eq. 2
and Algorithm 1; Chen et al., "Improved Baselines with Momentum Contrastive Learning" (arXiv:2003.04297) for the head,
the views and the temperature. The first view of an instance is the query, the second the key.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from instcls_tf.classifier.output import LossOutput, Move, differentiable
from instcls_tf.config import LARGEST_QUEUE, MOCO_V2, TEMPERATURES, PretrainConfig
from instcls_tf.distributed import collectives
from instcls_tf.encoder import bn_groups, networks
from instcls_tf.methods.method import Learn, Output, StepBatch
from instcls_tf.methods.rival import Rival


class MoCoV2(Rival):
    """The key encoder, the queue of keys and the loss; all workers hold the same.

    Args:
      encoder: the one that is trained, already with its initial weights.
      key_encoder: a second one of the same architecture; its weights are replaced by those of the first.
      queue_size: Q; Gaussian directions at first, as in the authors' code. The queue may hold older keys of a query's
        own instance, which count as negatives, so it should be well below the number of instances.
      momentum: m of Eq. 2.
      temperature: tau of Eq. 1.
      seed: of the first queue and of the shuffles.
      name: of the messages across the workers.
    """

    note = "no class weights; prior, smoothing and hard negatives play no part"

    def __init__(
        self,
        encoder: tf.keras.Model,
        key_encoder: tf.keras.Model,
        *,
        queue_size: int = LARGEST_QUEUE,
        momentum: float = PretrainConfig.moco_momentum,
        temperature: float = TEMPERATURES[MOCO_V2],
        seed: int = PretrainConfig.seed,
        name: str = "moco_v2",
    ):
        super().__init__(name=name)
        self.encoder, self.key_encoder = encoder, key_encoder
        self.momentum, self.temperature, self.seed = momentum, temperature, seed
        for mine, theirs in zip(key_encoder.variables, encoder.variables):
            mine.assign(theirs)
        directions = tf.random.stateless_normal([queue_size, encoder.output_shape[-1]], [seed, 0])
        self.queue = tf.Variable(tf.math.l2_normalize(directions, axis=1), trainable=False, name="queue")  # [Q, D]
        self.queue_end = tf.Variable(0, trainable=False, name="queue_end")  # where the next keys go

    def replicated(self) -> dict[str, tf.Module | tf.Variable]:
        """What a checkpoint keeps, by its name there; equal on all workers."""
        return {"key_encoder": self.key_encoder, "queue": self.queue, "queue_end": self.queue_end}

    def train(self, batch: StepBatch, learn: Learn) -> Output:
        """As `Method` has it: the first view is the query, the second the key, from which nothing is learned.

        The key encoder follows the encoder at the end of a step that is taken, so that the next one finds it where
        Algorithm 1 has it.
        """
        keys = self.encode_keys(batch.views[:, 1], batch.micro_batch, batch.step)[batch.instance_ids >= 0]  # [b, D]

        def of_queries(queries: tf.Tensor, ids: tf.Tensor) -> tuple[Output, Move]:
            del ids
            output, enqueue = self.prepare(queries, keys)

            def move() -> None:
                enqueue()
                self.update_key_encoder()

            return output, move

        return learn(batch.views[:, :1], batch.instance_ids, of_queries)

    def update_key_encoder(self) -> None:
        """Eq. 2: `theta_k <- m theta_k + (1 - m) theta_q`, for the trainable variables."""
        for mine, theirs in zip(self.key_encoder.trainable_variables, self.encoder.trainable_variables):
            mine.assign(self.momentum * mine + (1.0 - self.momentum) * theirs)

    def encode_keys(self, images: tf.Tensor, group_rows: int, step: tf.Tensor | int) -> tf.Tensor:
        """The keys of a worker's images, from BN groups of other rows than those of the queries.

        Shuffled BN: a query and its key in the same group could recognise each other by the group's statistics. The
        worker's rows are shuffled anew for each step, and their keys brought back into order. Unlike in the authors'
        code nothing is sent: the shuffle acts only where a worker has several BN groups, and differs with the number of
        workers.

        Args:
          images: `[b, H, W, 3]`, one view of each instance.
          group_rows: images per BN group.
          step: chooses the shuffle.

        Returns:
          `[b, D]` float32, L2-normalised, without a gradient.
        """
        statistics = networks.batch_norm_statistics(self.key_encoder)
        before = [variable.read_value() for variable in statistics]

        def in_training_mode(group: tf.Tensor, begin: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
            del begin
            keys = self.key_encoder(group, training=True)
            # Keys are made with the group's own statistics only; moving ones would differ between workers.
            for variable, value in zip(statistics, before):
                variable.assign(value)
            return keys, state

        seed = tf.stack([self.seed, tf.cast(step, tf.int32)])
        order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(images)[0]), seed)
        size = self.key_encoder.output_shape[-1]
        keys, _ = bn_groups.map_groups(in_training_mode, tf.gather(images, order), group_rows, size, ())
        keys = tf.gather(keys, tf.math.invert_permutation(order))
        return tf.stop_gradient(tf.math.l2_normalize(keys, axis=1))

    def prepare(self, queries: tf.Tensor, keys: tf.Tensor) -> tuple[LossOutput, Move]:
        """Eq. 1, InfoNCE, the mean over the global batch of which this worker holds a part; all workers together.

        A query's negatives are the queue only, so its gradient needs nothing from the other workers but their number
        of rows. To be called inside a `tf.function` when there are several workers.

        Args:
          queries: `[b, D]` of any float dtype and length; b may differ between workers and be 0.
          keys: `[b, D]` of the same instances, from `encode_keys`.

        Returns:
          `LossOutput`, whose loss is not checked to be finite and whose `instance_top1` is the share of queries that
          are more similar to their key than to the queue; and what replaces the oldest keys of the queue by those of
          the global batch, in the order of its rows.
        """
        all_keys = collectives.all_gather(keys, f"{self.name}_keys")[-self.queue.shape[0] :]  # [B, D]
        return self._loss(queries, keys), lambda: self._enqueue(all_keys)

    def _loss(self, queries: tf.Tensor, keys: tf.Tensor) -> LossOutput:
        normalized = tf.math.l2_normalize(tf.cast(queries, tf.float32), axis=1)  # [b, D]
        fixed = tf.stop_gradient(normalized)
        own = tf.reduce_sum(fixed * keys, axis=1, keepdims=True)  # [b, 1]
        others = tf.matmul(fixed, self.queue, transpose_b=True)  # [b, Q]
        logits = tf.concat([own, others], axis=1) / self.temperature  # [b, 1 + Q]
        losses = -tf.nn.log_softmax(logits)[:, 0]  # [b]
        hits = tf.cast(own[:, 0] > tf.reduce_max(others, axis=1), tf.float32)
        sums = tf.stack([tf.reduce_sum(losses), tf.reduce_sum(hits), tf.cast(tf.shape(keys)[0], tf.float32)])
        loss, hits, batch_rows = tf.unstack(collectives.sum_over_workers(sums, f"{self.name}_sums"))
        loss, top1 = tf.math.divide_no_nan(loss, batch_rows), tf.math.divide_no_nan(hits, batch_rows)

        p = tf.nn.softmax(logits)
        gradient = (p[:, :1] - 1.0) * keys + tf.matmul(p[:, 1:], self.queue)  # [b, D]
        gradient = tf.math.divide_no_nan(gradient, self.temperature * batch_rows)
        return LossOutput(differentiable(loss, normalized, gradient), top1)

    def _enqueue(self, keys: tf.Tensor) -> None:
        size = self.queue.shape[0]
        places = (self.queue_end + tf.range(tf.shape(keys)[0])) % size
        self.queue.scatter_update(tf.IndexedSlices(keys, places))
        self.queue_end.assign((self.queue_end + tf.shape(keys)[0]) % size)
