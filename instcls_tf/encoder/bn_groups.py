"""Encoding a share of a batch in groups: the groups of batch normalisation, whose size belongs to the recipe.

A worker encodes its groups one after the other, each with its own BN statistics, so a run does not depend on how many
workers share the groups. The classifier sees all embeddings of the global batch at once and returns their exact
gradients. When a worker has several groups, their activations are kept until then, or each is encoded again to
backpropagate its part (gradient caching): in the memory of one group, at the cost of a second forward pass. Both give
the same bits, for the groups' gradients are added in the same order.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from instcls_tf.distributed import collectives
from instcls_tf.encoder import networks


class Encoded(NamedTuple):
    """A share of a batch, embedded."""

    embeddings: tf.Tensor  # [b, D] float32
    backpropagate: Callable[[tf.Tensor], list[tf.Tensor]]
    """From the gradient for the embeddings, `[b, D]`, to those for the encoder's trainable variables."""
    update_statistics: Callable[[], None]
    """Lets the BN statistics of the batch into the moving ones, which are as they were until then."""


class Groups(NamedTuple):
    """How a worker encodes its share."""

    several: bool  # whether any worker may have more than one group
    kept: bool = False  # whether the activations of several are kept
    in_batch: float | None = None  # full groups in a full batch, over all workers; None: every batch counts as full


def encode(encoder: tf.keras.Model, images: tf.Tensor, is_real: tf.Tensor, group_rows: int, groups: Groups) -> Encoded:
    """Embeds a share of a batch in training mode; all workers together.

    The moving statistics take one step per batch, when `update_statistics` of the result is called: towards the mean
    over all BN groups of the global batch, whichever workers had them. A group counts by its real images, and a smaller
    batch, such as the last one of an epoch, takes as large a part of a step as it is of a full batch.

    Args:
      encoder: from images to `[b, D]`.
      images: `[b, H, W, 3]`; a group is `group_rows` consecutive ones, the last may be smaller.
      is_real: `[b]` bool; the others have no say in the moving statistics, but as neighbours in their group.
      group_rows: images per BN group.
      groups: how several are encoded.
    """
    statistics = networks.batch_norm_statistics(encoder)
    before = [variable.read_value() for variable in statistics]

    def in_training_mode(group: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        embeddings = encoder(group, training=True)
        after = [variable.read_value() for variable in statistics]
        for variable, value in zip(statistics, before):
            variable.assign(value)
        return embeddings, after

    encodes_again = groups.several and not groups.kept
    tape = None if encodes_again else tf.GradientTape()
    with tape or contextlib.nullcontext():
        if groups.several:
            size = encoder.output_shape[-1]
            embeddings, sums, count = _encode_groups(in_training_mode, images, is_real, group_rows, size, before)
        else:
            embeddings, after = in_training_mode(images)
            count = _share_of_group(is_real, group_rows)
            sums = [count * value for value in after]

    moved = _mean_over_groups(sums, count, before, groups.in_batch)

    def update_statistics() -> None:
        for variable, value in zip(statistics, moved):
            variable.assign(value)

    def backpropagate(gradient: tf.Tensor) -> list[tf.Tensor]:
        variables = encoder.trainable_variables
        if tape is not None:
            return tape.gradient(embeddings, variables, output_gradients=gradient)
        kept = [variable.read_value() for variable in statistics]
        gradients = _backpropagate_groups(encoder, images, gradient, group_rows)
        for variable, value in zip(statistics, kept):  # encoding the groups again moves them as well
            variable.assign(value)
        return gradients

    return Encoded(embeddings, backpropagate, update_statistics)


def map_groups(
    function: Callable[..., tuple[tf.Tensor, Any]], images: tf.Tensor, group_rows: int, embedding_size: int, state: Any
) -> tuple[tf.Tensor, Any]:
    """Runs `embeddings, state = function(group, first row, state)` over the groups of `images`, one at a time.

    The last group comes first: the gradient of this loop then goes from the first to the last, in the order of
    `_backpropagate_groups`.

    Args:
      function: from a group `[g, H, W, 3]`, its first row and a state to embeddings `[g, D]` and the next state.
      images: `[b, H, W, 3]`.
      group_rows: images per group; the last one may be smaller.
      embedding_size: D.
      state: the first, a tensor or a structure of tensors whose shapes stay.

    Returns:
      All embeddings `[b, D]` float32, and the last state.
    """
    num_rows = tf.shape(images)[0]
    num_groups = (num_rows + group_rows - 1) // group_rows
    parts = tf.TensorArray(tf.float32, num_groups, infer_shape=False, element_shape=[None, embedding_size])

    def step(index: tf.Tensor, parts: tf.TensorArray, state: Any) -> tuple:
        begin = index * group_rows
        embeddings, state = function(images[begin : begin + group_rows], begin, state)
        return index - 1, parts.write(index, tf.cast(embeddings, tf.float32)), state

    _, parts, state = tf.while_loop(
        lambda index, *_: index >= 0, step, (num_groups - 1, parts, state), parallel_iterations=1
    )
    return tf.ensure_shape(parts.concat(), [None, embedding_size]), state


def _encode_groups(
    in_training_mode: Callable[[tf.Tensor], tuple[tf.Tensor, list[tf.Tensor]]],
    images: tf.Tensor,
    is_real: tf.Tensor,
    group_rows: int,
    embedding_size: int,
    before: list[tf.Tensor],
) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
    def add_group(group: tf.Tensor, begin: tf.Tensor, state: tuple) -> tuple:
        sums, count = state
        embeddings, after = in_training_mode(group)
        counted = _share_of_group(is_real[begin : begin + group_rows], group_rows)
        return embeddings, ([total + counted * value for total, value in zip(sums, after)], count + counted)

    start = ([tf.zeros_like(value) for value in before], tf.constant(0.0))
    embeddings, (sums, count) = map_groups(add_group, images, group_rows, embedding_size, start)
    return embeddings, sums, count


def _share_of_group(is_real: tf.Tensor, group_rows: int) -> tf.Tensor:
    return tf.math.count_nonzero(is_real, dtype=tf.float32) / float(group_rows)


def _mean_over_groups(
    sums: list[tf.Tensor], count: tf.Tensor, before: list[tf.Tensor], in_batch: float | None
) -> list[tf.Tensor]:
    """The mean of every statistic over the groups of all workers, from each worker's sums; one message.

    With fewer groups than are `in_batch` the way there from `before` is that much shorter; without any that counts (all
    images of the batch are bad) the statistics stay as they were.
    """
    if not sums:
        return []
    sizes = [value.shape[0] for value in sums]
    message = collectives.sum_over_workers(tf.concat([*sums, count[tf.newaxis]], axis=0), "batch_norm_statistics")
    *totals, count = tf.split(message, [*sizes, 1])
    share = tf.minimum(1.0, tf.math.divide_no_nan(count, count if in_batch is None else in_batch))
    means = [tf.math.divide_no_nan(total, count) for total in totals]
    return [tf.where(share < 1.0, old + share * (mean - old), mean) for mean, old in zip(means, before)]


def _backpropagate_groups(
    encoder: tf.keras.Model, images: tf.Tensor, gradient: tf.Tensor, group_rows: int
) -> list[tf.Tensor]:
    variables = encoder.trainable_variables
    num_rows = tf.shape(images)[0]
    last = (num_rows - 1) // group_rows

    def gradients_of(index: tf.Tensor) -> list[tf.Tensor]:
        begin = index * group_rows
        with tf.GradientTape() as tape:
            embeddings = encoder(images[begin : begin + group_rows], training=True)
        return tape.gradient(embeddings, variables, output_gradients=gradient[begin : begin + group_rows])

    def add_group(index: tf.Tensor, sums: list[tf.Tensor]) -> tuple:
        return index + 1, [total + part for total, part in zip(sums, gradients_of(index))]

    zeros = [tf.zeros_like(variable) for variable in variables]
    _, sums = tf.while_loop(lambda index, _: index < last, add_group, (tf.constant(0), zeros), parallel_iterations=1)
    # The last group stands outside of the loop: its gradients are ready one by one, so that sending them overlaps.
    return [total + part for total, part in zip(sums, gradients_of(last))]
