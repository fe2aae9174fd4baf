"""The paper's eight steps for one batch: the encoder around the classifier, and the sum of its gradients."""

from __future__ import annotations

from typing import Callable

import tensorflow as tf

from instcls_tf import collectives, grouped
from instcls_tf.classifier import ClassifierOutput, ShardedClassifier
from instcls_tf.hardest_classes import HardNegatives


def make_train_step(
    encoder: tf.keras.Model,
    classifier: ShardedClassifier,
    hard_negatives: HardNegatives | None,
    optimizer: tf.keras.optimizers.Optimizer,
    views_spec: tf.TensorSpec,
    micro_batch: int,
    several_groups: bool,
    sum_gradients: Callable[[list[tf.Tensor], str], list[tf.Tensor]] = collectives.sum_one_by_one,
):
    """The training step as a `tf.function` of `(views [b, V, H, W, 3], instance_ids [b], learning_rate)`.

    A worker's share is encoded in BN groups of `micro_batch` instances; `several_groups` says whether any worker may
    have more than one; `sum_gradients` completes the gradients of the encoder over the workers. Instances with id -1
    are padding: they are encoded but not in the loss. Returns `ClassifierOutput`. One graph serves all batch sizes:
    retracing for the last batch of an epoch takes longer than many steps.
    """

    @tf.function(input_signature=[views_spec, tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.float32)])
    def train_step(views, instance_ids, learning_rate) -> ClassifierOutput:
        images = tf.reshape(views, [-1, *views.shape[2:]])  # [b V, H, W, 3]
        row_ids = tf.repeat(instance_ids, views.shape[1])  # [b V]
        is_real = row_ids >= 0
        row_ids = row_ids[is_real]
        hard = None if hard_negatives is None else hard_negatives.lookup(row_ids)  # [b V, K]
        encoded = grouped.encode(encoder, images, is_real, micro_batch * views.shape[1], several_groups)  # step 1
        with tf.GradientTape() as tape:
            tape.watch(encoded.embeddings)
            embeddings = encoded.embeddings[is_real]
            output = classifier(embeddings, row_ids, hard, learning_rate, optimizer.iterations)  # steps 2 to 8
            loss = _scaled(output.loss, optimizer)
        gradients = encoded.backpropagate(tf.convert_to_tensor(tape.gradient(loss, encoded.embeddings)))
        # Sums, not means: the loss is already divided by the global number of rows. One message per variable, so
        # that they travel while the backward pass goes on.
        gradients = sum_gradients(gradients, "encoder_gradient")
        optimizer.apply_gradients(zip(_unscaled(gradients, optimizer), encoder.trainable_variables))
        return output

    return train_step


def _scaled(loss, optimizer):
    return optimizer.get_scaled_loss(loss) if hasattr(optimizer, "get_scaled_loss") else loss


def _unscaled(gradients, optimizer):
    return optimizer.get_unscaled_gradients(gradients) if hasattr(optimizer, "get_unscaled_gradients") else gradients
