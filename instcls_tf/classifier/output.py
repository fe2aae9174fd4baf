"""What a loss over the global batch returns, how its gradient reaches the encoder, and when class weights move."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import tensorflow as tf

# Moves what a loss keeps itself. Called once, or not at all if the step is not to be taken.
Move = Callable[[], None]


class LossOutput(NamedTuple):
    """What a batch tells; the same on all workers."""

    loss: tf.Tensor  # scalar float32: the mean over the global batch, differentiable for this worker's embeddings
    # scalar float32: the share of the batch whose own instance is the most similar of all (of all that take part)
    instance_top1: tf.Tensor


def differentiable(loss: tf.Tensor, embeddings: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """The loss, whose derivative for `embeddings` is `gradient`.

    The loss of a global batch depends on the other workers' embeddings, too, and collectives are not differentiated:
    each loss comes with the exact derivative for its worker's rows.

    Args:
      loss: scalar float32, not differentiable by itself.
      embeddings: `[b, D]` float32, this worker's.
      gradient: `[b, D]` float32.

    Returns:
      `loss`; the sum over the workers of the gradients that follow from it is the encoder's.
    """

    @tf.custom_gradient
    def attach(embeddings: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        del embeddings  # the loss is known already
        return tf.identity(loss), lambda dloss: dloss * gradient

    return attach(embeddings)


def moved(output: Any, move: Move) -> Any:
    """A loss after its own weights have moved, for calls outside of a training step, which looks at more than that.

    Args:
      output: `LossOutput`, or a named tuple that has its fields and more.
      move: what `prepare` returned with it.

    Raises:
      InvalidArgumentError: the loss is not finite; on all workers alike, before anything was moved.
    """
    loss = tf.debugging.check_numerics(output.loss, "the loss of the global batch")
    with tf.control_dependencies([loss]):
        move()
    return output._replace(loss=loss)


@tf.autograph.experimental.do_not_convert  # in a Keras model it would be tried, and warned of: there is no statement
def move_nothing() -> None:
    """Of losses without weights of their own, and of calls without a learning rate."""


def mean_over_rows(per_row: tf.Tensor) -> tf.Tensor:
    """The mean of `[B]`; 0 for a batch without rows, which has bad images only: no reason to end a run."""
    return tf.math.divide_no_nan(tf.reduce_sum(per_row), tf.cast(tf.size(per_row), tf.float32))
