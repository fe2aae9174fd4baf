"""The million-way classifier: one worker's rows, the distributed streamed softmax, and SGD on the rows."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from instcls_tf import collectives, compiled_softmax, softmax, storage
from instcls_tf.config import CLASS_DTYPES, PretrainConfig
from instcls_tf.labels import Targets, label_distribution, select_targets
from instcls_tf.optimizer import momentum_update

# Keeps the samples apart from other uses of the same seed.
_SAMPLE_TAG = 11
_SHUFFLE_ROUNDS = 16


class ClassifierOutput(NamedTuple):
    """What a batch tells; the same on all workers."""

    loss: tf.Tensor  # scalar float32: the mean over all rows of the global batch
    instance_top1: tf.Tensor  # scalar float32: the share of rows whose own class has the largest logit of all N


class _Gathered(NamedTuple):
    """The global batch as every worker sees it, and its labels on this worker's classes."""

    embeddings: tf.Tensor  # [B, D] L2-normalised
    is_own: tf.Tensor  # [B] which rows this worker contributed
    streamed: tf.Tensor | None  # [n] which of the local rows take part, or None for all of them
    num_streamed: tf.Tensor  # scalar int32
    targets: Targets


class ShardedClassifier(tf.keras.layers.Layer):
    """Cosine softmax over N instance classes whose weights are split by rows over the workers.

    Worker r of T owns the contiguous classes `collectives.own_bounds(N)`; N need not be divisible by T. A call with a
    learning rate is one training step for these rows: they are moved by momentum SGD inside the call, tile by tile, so
    that neither logits nor weight gradients of more than one tile ever exist. The returned loss can be differentiated
    for the embeddings as usual; that gradient is the exact derivative of the global mean loss for this worker's rows
    (computed from the weights before they moved), so the gradients of replicated variables are to be summed over the
    workers. Without Horovod being launched the layer is an ordinary one-worker layer.

    Args:
      num_instances: N.
      embedding_size: D.
      temperature: tau of Eq. 1.
      smoothing: alpha of Eq. 2.
      smoothing_loss: `marginal` is Eq. 3 as printed, `cross_entropy` the soft-label cross-entropy.
      momentum: the momentum factor of the rows' SGD.
      weight_decay: the L2 coefficient of the rows' SGD.
      learning_rate_factor: multiplies the learning rate of each call.
      sampled_classes: size of the class sample that each step uses instead of all N (Table 3); 0 for all.
      weights_dtype: how the rows are kept, `float32` or `bfloat16`; they are computed with in float32.
      momentum_dtype: the same for their momentum.
      products_dtype: of the factors of matrix products, `float32` or `bfloat16`.
      seed: of the Gaussian rows and of the class samples.
    """

    def __init__(
        self,
        num_instances: int,
        embedding_size: int = PretrainConfig.embedding_size,
        *,
        temperature: float = PretrainConfig.temperature,
        smoothing: float = PretrainConfig.smoothing,
        smoothing_loss: str = PretrainConfig.smoothing_loss,
        momentum: float = PretrainConfig.momentum,
        weight_decay: float = PretrainConfig.weight_decay,
        learning_rate_factor: float = PretrainConfig.classifier_learning_rate_factor,
        sampled_classes: int = PretrainConfig.sampled_classes,
        weights_dtype: str = PretrainConfig.class_weights_dtype,
        momentum_dtype: str = PretrainConfig.class_momentum_dtype,
        products_dtype: str = PretrainConfig.class_products_dtype,
        seed: int = PretrainConfig.seed,
        name: str = "sharded_classifier",
    ):
        # The softmax sums stay in float32 whatever the encoder computes in.
        super().__init__(name=name, dtype=tf.float32)
        if smoothing_loss not in softmax.SMOOTHING_LOSSES:
            raise ValueError(f"smoothing_loss={smoothing_loss!r}: must be one of {softmax.SMOOTHING_LOSSES}")
        dtypes = {"weights_dtype": weights_dtype, "momentum_dtype": momentum_dtype, "products_dtype": products_dtype}
        for argument, dtype in dtypes.items():
            if dtype not in CLASS_DTYPES:
                raise ValueError(f"{argument}={dtype!r}: must be one of {CLASS_DTYPES}")
        self.num_instances, self.embedding_size = num_instances, embedding_size
        self.temperature, self.smoothing, self.smoothing_loss = temperature, smoothing, smoothing_loss
        self.momentum_factor, self.weight_decay = momentum, weight_decay
        self.learning_rate_factor = learning_rate_factor
        self.sampled_classes, self.seed = sampled_classes, seed
        self.products_dtype = tf.as_dtype(products_dtype)
        self.begin, self.end = collectives.own_bounds(num_instances)
        shape = (self.end - self.begin, embedding_size)
        # Not trainable in Keras' sense: no optimiser outside may move them a second time.
        kept = {"shape": shape, "initializer": "zeros", "trainable": False, "experimental_autocast": False}
        self.local_rows = self.add_weight(name="rows", dtype=weights_dtype, **kept)
        self.local_momentum = self.add_weight(name="momentum", dtype=momentum_dtype, **kept)
        self.built = True

    @property
    def num_local(self) -> int:
        """n, the number of classes that this worker owns."""
        return self.end - self.begin

    def initialize_gaussian(self) -> None:
        """`classifier_init=random`: Gaussian rows of unit expected length, the same classes whatever T is."""
        block = 8192
        scale = self.embedding_size**-0.5
        for start in range(self.begin // block * block, self.end, block):
            stop = min(start + block, self.num_instances)
            rows = tf.random.stateless_normal([stop - start, self.embedding_size], [self.seed, start]) * scale
            low, high = max(start, self.begin), min(stop, self.end)
            self.write(tf.range(low, high) - self.begin, rows[low - start : high - start])

    def read(self, local_index: tf.Tensor) -> tf.Tensor:
        """The rows `[m, D]` float32 of some local classes; never touches the others (`read_value()` copies all)."""
        return tf.cast(self.local_rows.sparse_read(local_index), tf.float32)

    def write(self, local_index: tf.Tensor, rows: tf.Tensor) -> None:
        """Replaces the rows of some local classes by `[m, D]` float32."""
        self.local_rows.scatter_update(tf.IndexedSlices(tf.cast(rows, self.local_rows.dtype), local_index))

    def call(
        self,
        embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        hard_negatives: tf.Tensor | None = None,
        learning_rate: tf.Tensor | float | None = None,
        step: tf.Tensor | int = 0,
    ) -> ClassifierOutput:
        """The loss of the global batch of which this worker holds a part; steps 2 to 8 of the paper.

        Args:
          embeddings: `[b, D]` of any float dtype and length; b may differ between workers and be 0.
          instance_ids: `[b]` integers in [0, N); several rows (views) may share one.
          hard_negatives: `[b, K]` ids of each row's hard negatives, needed when smoothing is above 0.
          learning_rate: of this step's update of the class weights; None leaves them alone.
          step: chooses the class sample; the same on all workers.

        Returns:
          `ClassifierOutput`; `loss` is differentiable for `embeddings`.

        Raises:
          InvalidArgumentError: the loss is not finite; on all workers alike, before anything was updated.
        """
        if self.smoothing and hard_negatives is None:
            raise ValueError(f"smoothing={self.smoothing}: hard_negatives are needed")
        normalized = tf.math.l2_normalize(tf.cast(embeddings, tf.float32), axis=1)  # [b, D]
        instance_ids = tf.cast(instance_ids, tf.int32)
        hard_negatives = tf.cast(hard_negatives, tf.int32) if self.smoothing else None
        if learning_rate is not None:  # a Python number would retrace the step whenever it changes
            learning_rate = tf.cast(learning_rate, tf.float32)

        @tf.custom_gradient
        def streamed(local_embeddings):
            # The gradient is one of the results: TensorFlow need not look for another way to it.
            fixed = tf.stop_gradient(local_embeddings)
            loss, instance_top1, gradient = self._step(
                fixed, instance_ids, hard_negatives, learning_rate, tf.cast(step, tf.int32)
            )
            return (loss, instance_top1), lambda dloss, _: dloss * gradient

        return ClassifierOutput(*streamed(normalized))

    # A graph of its own even when called eagerly: Horovod ignores the names of tensors in eager mode.
    @tf.function(reduce_retracing=True)
    def _step(self, local_embeddings, instance_ids, hard_negatives, learning_rate, step):
        batch = self._gather(local_embeddings, instance_ids, hard_negatives, step)
        shift = self._shift(batch)
        local = self._forward(batch, shift)

        sums = tf.stack([local.exp_sum, local.target_sum, local.own_logit])  # [3, B]
        exp_sum, target_sum, own_logit = tf.unstack(collectives.sum_over_workers(sums, f"{self.name}_sums"))
        max_negative = collectives.max_over_workers(local.max_negative, f"{self.name}_max_negative")
        loss = _mean(softmax.loss_per_row(exp_sum, target_sum, shift, self.smoothing_loss))
        loss = tf.debugging.check_numerics(loss, "the loss of the global batch")
        instance_top1 = _mean(tf.cast(own_logit > max_negative, tf.float32))

        gradient = softmax.embedding_gradient(local, exp_sum, target_sum, self.temperature, self.smoothing_loss)
        gradient = collectives.sum_and_keep_own_rows(
            gradient, batch.is_own, f"{self.name}_embedding_gradient"
        )  # [b, D]
        if learning_rate is not None:
            with tf.control_dependencies([loss]):
                self._backward(batch, shift, exp_sum, target_sum, self.learning_rate_factor * learning_rate, step)
        return loss, instance_top1, gradient

    def _gather(self, local_embeddings, instance_ids, hard_negatives, step) -> _Gathered:
        """Step 2: everybody's embeddings and labels, and which local classes take part."""
        embeddings = collectives.all_gather(local_embeddings, f"{self.name}_embeddings")  # [B, D]
        instance_ids, is_own = collectives.all_gather_ids(instance_ids, f"{self.name}_ids")  # [B]
        if hard_negatives is not None:
            hard_negatives = collectives.all_gather(hard_negatives, f"{self.name}_hard")  # [B, K]
        classes, labels = label_distribution(instance_ids, hard_negatives, self.smoothing)  # [B, K+1]
        is_local = (classes >= self.begin) & (classes < self.end)
        columns = tf.where(is_local, classes - self.begin, -1)
        streamed, num_streamed = None, tf.constant(self.num_local)
        if self.sampled_classes:
            sample = sample_classes(instance_ids, self.num_instances, self.sampled_classes, (self.seed, step))
            streamed = sample[(sample >= self.begin) & (sample < self.end)] - self.begin  # [n] ascending
            num_streamed = tf.size(streamed)
            columns = tf.where(is_local, tf.reshape(tf.searchsorted(streamed, _flat(columns)), tf.shape(columns)), -1)
        return _Gathered(embeddings, is_own, streamed, num_streamed, select_targets(columns, labels))

    def _shift(self, batch: _Gathered) -> softmax.Shift | None:
        if self.temperature >= softmax.SMALLEST_UNSHIFTED_TEMPERATURE:
            return None
        maxima = softmax.row_maxima(*self._stream(batch), self.temperature, self.products_dtype)
        maxima = collectives.max_over_workers(tf.stack(maxima), f"{self.name}_shift")  # [2, B]
        return softmax.Shift(*tf.unstack(maxima))

    def _forward(self, batch: _Gathered, shift: softmax.Shift | None) -> softmax.PartialSums:
        """Steps 3 and 4."""
        settings = (self.temperature, self.smoothing_loss, self.products_dtype)
        if shift is None and compiled_softmax.available():
            return compiled_softmax.forward_pass(
                self.local_rows, batch.streamed, batch.embeddings, batch.targets, *settings
            )
        return softmax.forward_pass(*self._stream(batch), shift, *settings)

    def _backward(self, batch: _Gathered, shift, exp_sum, target_sum, learning_rate, step) -> None:
        """Steps 6 and 8 for the rows."""
        settings = (exp_sum, target_sum, self.temperature, self.smoothing_loss, self.products_dtype)
        sgd = {"learning_rate": learning_rate, "momentum_factor": self.momentum_factor}
        sgd["weight_decay"] = self.weight_decay
        seed = self.seed + step
        if shift is None and compiled_softmax.available():
            compiled_softmax.backward_pass(
                self.local_rows,
                self.local_momentum,
                batch.streamed,
                batch.embeddings,
                batch.targets,
                *settings,
                **sgd,
                first_class=self.begin,
                seed=seed,
            )
            return
        read, *stream = self._stream(batch)

        def update(tile: softmax.Tile, gradients: tf.Tensor) -> tf.Operation:
            index = _local_index(batch.streamed, tile.begin, tile.end)
            momentum = tf.cast(self.local_momentum.sparse_read(index), tf.float32)  # [c, D]
            rows, momentum = momentum_update(tile.rows, gradients, momentum, **sgd)
            self._store(self.local_momentum, index, momentum, seed, storage.MOMENTUM)
            return self._store(self.local_rows, index, rows, seed, storage.WEIGHTS)

        softmax.backward_pass(read, update, *stream, shift, *settings)

    def _stream(self, batch: _Gathered):
        """What the passes of `softmax.py` go through."""

        def read(begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
            return self.read(_local_index(batch.streamed, begin, end))

        return read, batch.num_streamed, batch.embeddings, batch.targets

    def _store(self, variable: tf.Variable, local_index, values, seed, part: int) -> tf.Operation:
        values = storage.round_for(variable, values, self.begin + local_index, seed, part)
        return variable.scatter_update(tf.IndexedSlices(values, local_index))


def sample_classes(instance_ids: tf.Tensor, num_instances: int, size: int, seed) -> tf.Tensor:
    """Table 3's sample: the batch's own classes, filled up with a uniform sample of the others.

    Args:
      instance_ids: `[B]` ids of the whole global batch; at most `size` distinct ones.
      num_instances: N.
      size: how many classes, at most N.
      seed: two integers (or integer tensors); the same on all workers.

    Returns:
      `[size]` int32 distinct class ids in ascending order, the same on all workers.
    """
    own = tf.sort(tf.unique(instance_ids)[0])
    # A random-access permutation: `size` distinct ids without shuffling all N. The default of 4 rounds leaves the
    # permutations of neighbouring seeds correlated.
    key = tf.stack([*(tf.cast(part, tf.int32) for part in seed), _SAMPLE_TAG])
    others = tf.raw_ops.RandomIndexShuffle(
        index=tf.range(size), seed=key, max_index=num_instances - 1, rounds=_SHUFFLE_ROUNDS
    )
    is_own = tf.searchsorted(own, others, side="right") > tf.searchsorted(own, others, side="left")
    others = others[~is_own][: size - tf.size(own)]
    return tf.sort(tf.concat([own, others], axis=0))


def _local_index(streamed, begin, end):
    return tf.range(begin, end) if streamed is None else streamed[begin:end]


def _mean(per_row):
    """0 for a batch without rows, which has bad images only: no reason to end a run."""
    return tf.math.divide_no_nan(tf.reduce_sum(per_row), tf.cast(tf.size(per_row), tf.float32))


def _flat(tensor):
    return tf.reshape(tensor, [-1])
