"""The paper's eight steps for one batch: the encoder around a method's loss, and the sum of its gradients."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import tensorflow as tf

from instcls_tf.distributed import collectives
from instcls_tf.encoder import bn_groups
from instcls_tf.methods.method import LossOfRows, Method, StepBatch
from instcls_tf.pretraining import finite


class Step(NamedTuple):
    """What a training step brings."""

    output: Any  # what the method returns
    health: finite.Health


TrainStep = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Step]


def make_train_step(
    network: tf.keras.Model,
    method: Method,
    optimizer: tf.keras.optimizers.Optimizer,
    views_spec: tf.TensorSpec,
    micro_batch: int,
    groups: bn_groups.Groups,
    sum_gradients: Callable[[list[tf.Tensor], str], list[tf.Tensor]] = collectives.sum_one_by_one,
    is_checked: bool = True,
) -> TrainStep:
    """The training step, of a worker's share of a batch.

    Loss and gradients are complete before weights and moving statistics move. If they are not finite, none does, on
    any worker. One graph serves all batch sizes: retracing for the last batch of an epoch takes longer than many steps.

    Args:
      network: what is trained, from images to `[b, D]`.
      method: gives the loss of embeddings, and moves what it has of its own.
      optimizer: of the network.
      views_spec: `[None, V, H, W, 3]`, uint8 or float.
      micro_batch: instances of a BN group.
      groups: how several of them are encoded.
      sum_gradients: completes the network's gradients over the workers; given them and the name of their messages.
      is_checked: False lets numbers that are not finite pass, to measure what the checks cost.

    Returns:
      A `tf.function` of `(views [b, V, H, W, 3], instance_ids [b] int32, learning_rate float32)`. Instances with id -1
      are padding: they are encoded but not in the loss.
    """

    def learn(views: tf.Tensor, instance_ids: tf.Tensor, loss_of_rows: LossOfRows) -> Step:
        images = tf.reshape(views, [-1, *views.shape[2:]])  # [b V, H, W, 3]
        row_ids = tf.repeat(instance_ids, views.shape[1])  # [b V]
        is_real = row_ids >= 0
        row_ids = row_ids[is_real]
        encoded = bn_groups.encode(network, images, is_real, micro_batch * views.shape[1], groups)  # step 1
        with tf.GradientTape() as tape:
            tape.watch(encoded.embeddings)
            output, move = loss_of_rows(encoded.embeddings[is_real], row_ids)  # steps 2 to 7
            loss = _scaled(output.loss, optimizer)
        embedding_gradient = tf.convert_to_tensor(tape.gradient(loss, encoded.embeddings))  # [b V, D]
        own = encoded.backpropagate(embedding_gradient)
        # Into the last one that the backward pass completes: the others need not wait for anything.
        if is_checked:
            own[0] = finite.mixed_in(own[0], embedding_gradient)
        # Sums, not means: the loss is already divided by the global number of rows. One message per variable, so
        # that they travel while the backward pass goes on.
        gradients = _unscaled(sum_gradients(own, "encoder_gradient"), optimizer)

        def apply() -> None:
            optimizer.apply_gradients(zip(gradients, network.trainable_variables))

        def move_rest() -> None:
            encoded.update_statistics()
            move()

        if not is_checked:
            apply()
            move_rest()
            return Step(output, finite.unchecked(output.loss))
        scale = getattr(optimizer, "loss_scale", None)
        taken = finite.take(output.loss, own, gradients, scale, apply, move_rest)  # step 8
        spoilt = (finite.spoilt(values, views.shape[1]) for values in (encoded.embeddings, embedding_gradient))
        return Step(output, finite.Health(*taken, output.loss, *spoilt))

    @tf.function(
        autograph=False, input_signature=[views_spec, tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.float32)]
    )
    def train_step(views: tf.Tensor, instance_ids: tf.Tensor, learning_rate: tf.Tensor) -> Step:
        return method.train(StepBatch(views, instance_ids, learning_rate, optimizer.iterations, micro_batch), learn)

    return train_step


def _scaled(loss: tf.Tensor, optimizer: tf.keras.optimizers.Optimizer) -> tf.Tensor:
    return optimizer.get_scaled_loss(loss) if hasattr(optimizer, "get_scaled_loss") else loss


def _unscaled(gradients: list[tf.Tensor], optimizer: tf.keras.optimizers.Optimizer) -> list[tf.Tensor]:
    return optimizer.get_unscaled_gradients(gradients) if hasattr(optimizer, "get_unscaled_gradients") else gradients
