"""The million-way classifier: one worker's classes, the distributed streamed softmax, and SGD on their weights."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from instcls_tf.classifier import arguments
from instcls_tf.classifier.arguments import GAUSSIAN
from instcls_tf.classifier.choice import fastest_passes, name_of, passes_of
from instcls_tf.classifier.directions import SMALLEST_NORM
from instcls_tf.classifier.initial_weights import drawn_blocks
from instcls_tf.classifier.labels import (
    HardNegativeLists,
    ListsOfRows,
    label_distribution,
    sample_classes,
    select_targets,
    split_targets,
)
from instcls_tf.classifier.local_classes import LocalClasses, Sgd
from instcls_tf.classifier.output import LossOutput, Move, differentiable, mean_over_rows, move_nothing, moved
from instcls_tf.classifier.own_classes import SampledPasses
from instcls_tf.classifier.softmax import (
    Batch,
    MakePasses,
    Shift,
    Softmax,
    Totals,
    embedding_gradient,
    loss_per_row,
)
from instcls_tf.classifier.table import Table
from instcls_tf.config import INSTANCE, INT8, TEMPERATURES, PretrainConfig
from instcls_tf.distributed import collectives


@tf.keras.utils.register_keras_serializable("instcls_tf")
class ShardedClassifier(tf.keras.layers.Layer):
    """Cosine softmax over N instance classes whose weights are split over the workers.

    Worker r of T owns the contiguous classes `collectives.own_bounds(N)`; N need not be divisible by T. A call with a
    learning rate is one training step for their weights: they are moved by momentum SGD inside the call, tile by tile,
    so that neither logits nor weight gradients of more than one tile ever exist. The returned loss can be
    differentiated for the embeddings as usual; that gradient is the exact derivative of the global mean loss for this
    worker's rows (computed from the weights before they moved), so the gradients of replicated variables are to be
    summed over the workers. Without a learning rate the class weights stay as they are: an encoder trained with such
    calls alone learns to find frozen ones. Without a launcher the layer is an ordinary one-worker layer.

    A whole training, with the default smoothing (`num_instances` is of the data, `k` at most one less):

        instcls_tf.init()
        batches = [(tf.random.uniform([16, 32, 32, 3], 0, 255), tf.range(16) + first) for first in (0, 16)]
        encoder = instcls_tf.build_encoder(encoder="resnet18", width_multiplier=0.25, stem="small", embedding_size=16)
        classifier = instcls_tf.ShardedClassifier(num_instances=32, embedding_size=16)
        hard_negatives = instcls_tf.HardNegatives(classifier, k=5)
        optimizer = tf.keras.optimizers.SGD(0.05, momentum=0.9)
        for epoch in range(2):
            hard_negatives.refresh()
            for images, instance_ids in batches:
                with tf.GradientTape() as tape:
                    embeddings = encoder(images, training=True)
                    loss = classifier(embeddings, instance_ids, hard_negatives, learning_rate=0.05).loss
                gradients = tape.gradient(loss, encoder.trainable_variables)
                # several workers: gradients = [hvd.allreduce(gradient, op=hvd.Sum) for gradient in gradients]
                optimizer.apply_gradients(zip(gradients, encoder.trainable_variables))

    Each of several workers has `instcls_tf.init()` first, the same initial encoder, and its own part of a batch.

    Two layers in one model or step need two names, as messages between workers are told apart by them. What Keras saves
    of a model holds this worker's classes only, for the same worker of as many; `load_model` knows the class as soon as
    `instcls_tf.ShardedClassifier` was named in the process.

    Args:
      num_instances: N.
      embedding_size: D.
      temperature: tau of Eq. 1.
      smoothing: alpha of Eq. 2.
      smoothing_loss: `marginal` is Eq. 3 as printed, `cross_entropy` the soft-label cross-entropy.
      momentum: the momentum factor of the class weights' SGD.
      weight_decay: the L2 coefficient of the class weights' SGD.
      learning_rate_factor: multiplies the learning rate of each call.
      sampled_classes: S of Table 3: each row's softmax runs over its own class and a uniform sample of S classes, the
        same for all rows of a step, instead of all N; 0 for all. Without smoothing only.
      weights_dtype: how class weights are kept, `float32`, `bfloat16` or `int8`, which has a scale per class; they are
        computed with in float32.
      momentum_dtype: the same for their momentum.
      products_dtype: of the factors of matrix products, `float32` or `bfloat16`.
      seed: of the Gaussian weights and of the class samples.
      initializer: `gaussian`, rows of unit expected length that do not depend on the number of workers; or `zeros`, for
        whoever fills them by `write`: rows of length 0 have no direction, and after one huge step hardly turn.
      make_passes: what computes the two passes of a step; a callable, or its name, one of `config.CLASS_PASSES`.
      name: of the layer, and of its messages between workers.

    Raises:
      ValueError: an argument is out of range, or does not go with another.
      UserError: several workers were launched, and `instcls_tf.init` was not called.
    """

    def __init__(
        self,
        num_instances: int,
        embedding_size: int = PretrainConfig.embedding_size,
        *,
        temperature: float = TEMPERATURES[INSTANCE],
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
        initializer: str = GAUSSIAN,
        make_passes: MakePasses | str = fastest_passes,
        name: str = "sharded_classifier",
    ):
        # The softmax sums stay in float32 whatever the encoder computes in.
        super().__init__(name=name, dtype=tf.float32)
        self._arguments: dict[str, Any] = {
            "num_instances": num_instances,
            "embedding_size": embedding_size,
            "temperature": temperature,
            "smoothing": smoothing,
            "smoothing_loss": smoothing_loss,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "learning_rate_factor": learning_rate_factor,
            "sampled_classes": sampled_classes,
            "weights_dtype": weights_dtype,
            "momentum_dtype": momentum_dtype,
            "products_dtype": products_dtype,
            "seed": seed,
            "initializer": initializer,
            "make_passes": make_passes if isinstance(make_passes, str) else name_of(make_passes),
        }
        arguments.check(self._arguments)
        self.num_instances, self.embedding_size = num_instances, embedding_size
        self.temperature, self.smoothing, self.smoothing_loss = temperature, smoothing, smoothing_loss
        self.momentum_factor, self.weight_decay = momentum, weight_decay
        self.learning_rate_factor = learning_rate_factor
        self.sampled_classes, self.seed = sampled_classes, seed
        self.begin, self.end = collectives.own_bounds(num_instances)
        tables = self._add_table("rows", weights_dtype), self._add_table("momentum", momentum_dtype)
        self.classes = LocalClasses(*tables, self.begin)
        self._softmax = Softmax(temperature, smoothing_loss, tf.as_dtype(products_dtype))
        make = passes_of(make_passes) if isinstance(make_passes, str) else make_passes
        self._passes = make(self.classes, self._softmax)
        if sampled_classes:
            self._passes = SampledPasses(self._passes, self.classes, self._softmax)
        self.built = True
        if initializer == GAUSSIAN:
            self.initialize_gaussian()

    def get_config(self) -> dict[str, Any]:
        """Keras' description of the layer; passes without a name become `auto`, as all compute the same."""
        return {"name": self.name, **self._arguments}

    def _add_table(self, name: str, dtype: str) -> Table:
        # Not trainable in Keras' sense: no optimiser outside may move them a second time.
        kept = {"initializer": "zeros", "trainable": False, "experimental_autocast": False}
        values = self.add_weight(name=name, shape=(self.num_local, self.embedding_size), dtype=dtype, **kept)
        scales = self.add_weight(name=f"{name}_scales", shape=(self.num_local,), **kept) if dtype == INT8 else None
        return Table(values, scales)

    @property
    def local_weights(self) -> tf.Variable:
        """The class weights `[n, D]` as they are kept; `read` has them in float32."""
        return self.classes.weights.values

    @property
    def local_momentum(self) -> tf.Variable:
        """Their momentum, likewise."""
        return self.classes.momentum.values

    @property
    def num_local(self) -> int:
        """n, the number of classes that this worker owns."""
        return self.end - self.begin

    def initialize_gaussian(self) -> None:
        """`classifier_init=random`: Gaussian weights of unit expected length, the same whatever T is."""
        scale = self.embedding_size**-0.5

        def draw(shape: list[int], seed: list[int]) -> tf.Tensor:
            return tf.random.stateless_normal(shape, seed) * scale

        bounds = (self.begin, self.end)
        for first, weights in drawn_blocks(draw, bounds, self.num_instances, self.embedding_size, self.seed):
            self.write(first - self.begin + tf.range(weights.shape[0]), weights)

    def read(self, local: tf.Tensor) -> tf.Tensor:
        """The weights `[m, D]` float32 of some local classes `[m]`, counted from `begin`."""
        return self.classes.read(local)

    def write(self, local: tf.Tensor, weights: tf.Tensor) -> None:
        """Replaces the weights of some local classes `[m]`, counted from `begin`, by `[m, D]` float32.

        They begin without momentum.
        """
        self.classes.write(local, weights)

    def call(
        self,
        embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        hard_negatives: HardNegativeLists | tf.Tensor | None = None,
        learning_rate: tf.Tensor | float | None = None,
        step: tf.Tensor | int = 0,
    ) -> LossOutput:
        """The loss of the global batch of which this worker holds a part; steps 2 to 8 of the paper.

        Args:
          embeddings: `[b, D]` of any float dtype and length; b may differ between workers and be 0.
          instance_ids: `[b]` integers in [0, N); several rows (views) may share one.
          hard_negatives: needed when smoothing is above 0: the lists of all classes (`HardNegatives`), or those of this
            worker's rows, `[b, K]` integers in [0, N).
          learning_rate: of this step's update of the class weights; None leaves them alone.
          step: chooses the class sample; the same on all workers.

        Returns:
          `LossOutput`; `loss` is differentiable for `embeddings`.

        Raises:
          ValueError: there is smoothing and no hard negatives, or they are of other rows, or `HardNegatives` that were
            never filled; outside of a `tf.function` also: an id is outside of [0, N). On the worker where it is so.
          InvalidArgumentError: the loss is not finite; on all workers alike, before anything was updated.
        """
        return moved(*self.prepare(embeddings, instance_ids, hard_negatives, learning_rate, step))

    def prepare(
        self,
        embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        hard_negatives: HardNegativeLists | tf.Tensor | None = None,
        learning_rate: tf.Tensor | float | None = None,
        step: tf.Tensor | int = 0,
    ) -> tuple[LossOutput, Move]:
        """A call whose class weights move later, or not at all if the encoder's step turns out not to be taken.

        Args as in `call`.

        Returns:
          The output, whose loss is not checked to be finite; and what moves the class weights.
        """
        normalized = tf.math.l2_normalize(tf.cast(embeddings, tf.float32), axis=1, epsilon=SMALLEST_NORM**2)  # [b, D]
        instance_ids = self._checked_ids("instance_ids", instance_ids)
        lists = self._lists(hard_negatives, normalized.shape[0]) if self.smoothing else None
        step = tf.cast(step, tf.int32)
        loss, instance_top1, gradient, batch, totals = self._forward(
            tf.stop_gradient(normalized), instance_ids, lists, step
        )
        output = LossOutput(differentiable(loss, normalized, gradient), instance_top1)
        if learning_rate is None:
            return output, move_nothing
        rate = tf.cast(learning_rate, tf.float32)  # a Python number would retrace the update whenever it changes
        return output, lambda: self._backward(batch, totals, rate, step)

    def _lists(self, hard_negatives: HardNegativeLists | tf.Tensor | None, num_rows: int | None) -> HardNegativeLists:
        if hard_negatives is None:
            such_as = (
                f"instcls_tf.HardNegatives(classifier, k) with a k below {self.num_instances}, after its refresh()"
            )
            raise ValueError(
                f"smoothing={self.smoothing}: hard_negatives are needed, such as {such_as}, or smoothing=0"
            )
        if hasattr(hard_negatives, "lookup"):
            return hard_negatives
        ids = self._checked_ids("hard_negatives", hard_negatives)
        arguments.check_rows(ids, num_rows)
        return ListsOfRows(ids, f"{self.name}_lists_of_rows")

    def _checked_ids(self, name: str, ids: tf.Tensor) -> tf.Tensor:
        ids = tf.convert_to_tensor(ids)
        arguments.check_ids(name, ids, self.num_instances)
        return tf.cast(ids, tf.int32)

    # Graphs of their own even when called eagerly: Horovod ignores the names of tensors in eager mode.
    @tf.function(autograph=False, reduce_retracing=True)
    def _forward(
        self,
        local_embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        hard_negatives: HardNegativeLists | None,
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Batch, Totals]:
        batch, is_own = self._gather(local_embeddings, instance_ids, hard_negatives, step)
        local = self._passes.forward(batch)

        sums = tf.stack([local.exp_sum, local.target_sum, local.own_logit])  # [3, B]
        exp_sum, target_sum, own_logit = tf.unstack(collectives.sum_over_workers(sums, f"{self.name}_sums"))
        totals = Totals(exp_sum, target_sum)
        max_negative = collectives.max_over_workers(local.max_negative, f"{self.name}_max_negative")
        loss = mean_over_rows(loss_per_row(totals, batch.shift, self.smoothing_loss))
        instance_top1 = mean_over_rows(tf.cast(own_logit > max_negative, tf.float32))

        gradient = embedding_gradient(local, totals, self._softmax)
        gradient = collectives.sum_and_keep_own_rows(gradient, is_own, f"{self.name}_embedding_gradient")  # [b, D]
        return loss, instance_top1, gradient, batch, totals

    @tf.function(autograph=False, reduce_retracing=True)
    def _backward(self, batch: Batch, totals: Totals, learning_rate: tf.Tensor, step: tf.Tensor) -> None:
        rate = self.learning_rate_factor * learning_rate
        self._passes.backward(batch, totals, Sgd(rate, self.momentum_factor, self.weight_decay, self.seed + step))

    def _gather(
        self,
        local_embeddings: tf.Tensor,
        instance_ids: tf.Tensor,
        hard_negatives: HardNegativeLists | None,
        step: tf.Tensor,
    ) -> tuple[Batch, tf.Tensor]:
        """Step 2: everybody's embeddings and labels, and which rows `[B]` this worker contributed."""
        embeddings = collectives.all_gather(local_embeddings, f"{self.name}_embeddings")  # [B, D]
        instance_ids, is_own = collectives.all_gather_ids(instance_ids, f"{self.name}_ids")  # [B]
        lists = None if hard_negatives is None else hard_negatives.lookup(instance_ids)  # [B, K]
        classes, labels = label_distribution(instance_ids, lists, self.smoothing)  # [B, K+1]
        is_local = (classes >= self.begin) & (classes < self.end)
        columns = tf.where(is_local, classes - self.begin, -1)
        if self.sampled_classes:
            sample = sample_classes(self.num_instances, self.sampled_classes, self.seed, step)
            streamed = sample[(sample >= self.begin) & (sample < self.end)] - self.begin  # [n] ascending
            targets, unsampled = split_targets(columns, labels, streamed)
            batch = Batch(embeddings, targets, streamed, unsampled)
        else:
            batch = Batch(embeddings, select_targets(columns, labels))
        return batch._replace(shift=self._shift(batch)), is_own

    def _shift(self, batch: Batch) -> Shift | None:
        maxima = self._passes.local_maxima(batch)
        if maxima is None:
            return None
        maxima = collectives.max_over_workers(tf.stack(maxima), f"{self.name}_shift")  # [2, B]
        return Shift(*tf.unstack(maxima))
