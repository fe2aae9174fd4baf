"""The yardstick: a plain data-parallel classifier, as one writes it without sharding and without streaming."""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.config import INSTANCE, TEMPERATURES, PretrainConfig
from instcls_tf.distributed import collectives


class DataParallelClassifier(tf.Module):
    """All N class weights on every worker, logits of the local rows in full, gradients summed by Horovod's own tape.

    The least that this way needs: one product for the logits (no normalised copy of the class weights), the fused
    softmax cross-entropy, and momentum SGD in place. A linear map `[D, D]` stands for the encoder, so that the gradient
    for the embeddings is computed as well.

    Args:
      num_instances: N.
      embedding_size: D.
      temperature: tau.
      momentum: the momentum factor.
    """

    def __init__(
        self,
        num_instances: int,
        embedding_size: int = PretrainConfig.embedding_size,
        *,
        temperature: float = TEMPERATURES[INSTANCE],
        momentum: float = PretrainConfig.momentum,
    ):
        super().__init__(name="data_parallel_classifier")
        self.temperature, self.momentum_factor = temperature, momentum
        scale = embedding_size**-0.5
        drawn = tf.random.normal([num_instances, embedding_size], stddev=scale, seed=0)
        self.class_weights = tf.Variable(drawn, name="class_weights")
        self.kernel = tf.Variable(tf.eye(embedding_size), name="encoder")
        self._momentums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in (self.class_weights, self.kernel)]

    @tf.function(autograph=False, reduce_retracing=True)
    def step(self, inputs: tf.Tensor, instance_ids: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        """One training step of the class weights and the stand-in of the encoder.

        Args:
          inputs: `[b, D]` float32, this worker's; the same b on all workers.
          instance_ids: `[b]` int32.
          learning_rate: scalar float32.

        Returns:
          The mean loss over the local rows, a scalar.
        """
        variables = [self.class_weights, self.kernel]
        with collectives.data_parallel_tape(tf.GradientTape()) as tape:
            embeddings = tf.math.l2_normalize(tf.matmul(inputs, self.kernel), axis=1) / self.temperature  # [b, D]
            logits = tf.matmul(embeddings, self.class_weights, transpose_b=True)  # [b, N]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(instance_ids, logits)  # [b]
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, variables)
        for variable, momentum, gradient in zip(variables, self._momentums, gradients):
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=momentum.handle,
                lr=learning_rate,
                grad=gradient,
                momentum=self.momentum_factor,
            )
        return loss
