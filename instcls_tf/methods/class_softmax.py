"""The softmax over class weights that are split over the workers: DIET's and PIC's, tile by tile and exact.

The logits of row i are l_ij = x_i . v_j, of any size, so a running maximum keeps exp in range. The forward pass sums,
per row, exp(l) and exp(l) v, which complete the loss and its gradient for x; the backward pass recomputes each tile's
logits and hands the gradient of its v to the caller. Neither all logits nor all weight gradients ever exist.

A class has a weight, a row is a row of the batch. Legend of the shape comments: B rows of the global batch, D their
size, n classes of this worker, c those of a tile.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import tensorflow as tf

from instcls_tf.classifier.output import mean_over_rows
from instcls_tf.distributed import collectives

# At most so many logits [B, c] at a time, 4 MB: the processor's cache holds much of it.
_TILE_ELEMENTS = 2**20

ReadWeights = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
MoveWeights = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], object]


class ClassBatch(NamedTuple):
    """The global batch as a worker sees it, and its labels: 1 - alpha on the own class, plus alpha / N on all N."""

    embeddings: tf.Tensor  # [B, D]
    columns: tf.Tensor  # [B] int32: the own class as a position among this worker's n, or below 0, or n and above
    is_own: tf.Tensor  # [B] which rows this worker contributed
    smoothing: float  # alpha
    num_classes: int  # N


class ClassSums(NamedTuple):
    """The results of the forward pass; all but the gradient are the same on all workers."""

    loss: tf.Tensor  # scalar: the mean over the B rows
    instance_top1: tf.Tensor  # scalar
    log_denominator: tf.Tensor  # [B] log sum_j exp(l_ij), over all workers' classes
    gradient: tf.Tensor  # [b, D] of the loss for this worker's rows


def forward(read: ReadWeights, num_local: tf.Tensor | int, batch: ClassBatch, name: str) -> ClassSums:
    """The cross-entropy of the batch with its labels; all workers together.

    Args:
      read: `read(begin, end)` returns v of those of this worker's classes, `[end - begin, D]` float32.
      num_local: n, how many classes this worker has; may be 0.
      batch: the global batch.
      name: of the messages across the workers.
    """
    x, batch_rows, size = batch.embeddings, tf.shape(batch.embeddings)[0], batch.embeddings.shape[1]

    def body(
        begin: tf.Tensor,
        end: tf.Tensor,
        maximum: tf.Tensor,
        max_negative: tf.Tensor,
        exp_sum: tf.Tensor,
        exp_weights: tf.Tensor,
        own_weights: tf.Tensor,
        weight_sum: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        weights, logits, row, column = _tile(read, begin, end, batch)
        negatives = tf.tensor_scatter_nd_update(
            logits, tf.stack([row, column], axis=1), tf.fill([tf.size(row)], -float("inf"))
        )
        new_maximum = tf.maximum(maximum, tf.reduce_max(logits, axis=1))  # [B]
        exp = tf.exp(logits - new_maximum[:, tf.newaxis])  # [B, c]
        rescale = tf.exp(maximum - new_maximum)
        return (
            new_maximum,
            tf.maximum(max_negative, tf.reduce_max(negatives, axis=1)),
            exp_sum * rescale + tf.reduce_sum(exp, axis=1),
            exp_weights * rescale[:, tf.newaxis] + tf.matmul(exp, weights),
            tf.tensor_scatter_nd_update(own_weights, row[:, tf.newaxis], tf.gather(weights, column)),
            weight_sum + tf.reduce_sum(weights, axis=0),
        )

    lowest, zeros = tf.fill([batch_rows], -float("inf")), tf.zeros([batch_rows, size])
    state = (lowest, lowest, tf.zeros([batch_rows]), zeros, zeros, tf.zeros([size]))
    maximum, max_negative, *sums = _for_each_tile(body, state, num_local, batch_rows)

    maxima = collectives.max_over_workers(tf.stack([maximum, max_negative]), f"{name}_maxima")  # [2, B]
    rescale = tf.exp(maximum - maxima[0])  # 0 for a worker without classes
    sums[:2] = sums[0] * rescale, sums[1] * rescale[:, tf.newaxis]
    message = collectives.sum_over_workers(tf.concat([tf.reshape(part, [-1]) for part in sums], axis=0), f"{name}_sums")
    parts = tf.split(message, [tf.size(part) for part in sums])
    exp_sum, exp_weights, own_weights, weight_sum = (tf.reshape(part, tf.shape(old)) for part, old in zip(parts, sums))

    log_denominator = tf.math.log(exp_sum) + maxima[0]
    own_logits = tf.reduce_sum(x * own_weights, axis=1)
    # sum_j y_ij v_j, [B, D]
    expected = (1.0 - batch.smoothing) * own_weights + batch.smoothing / batch.num_classes * weight_sum
    loss = mean_over_rows(log_denominator - tf.reduce_sum(x * expected, axis=1))
    gradient = (exp_weights / exp_sum[:, tf.newaxis] - expected) / tf.cast(batch_rows, tf.float32)
    instance_top1 = mean_over_rows(tf.cast(own_logits > maxima[1], tf.float32))
    return ClassSums(loss, instance_top1, log_denominator, gradient[batch.is_own])


def backward(
    read: ReadWeights, move: MoveWeights, num_local: tf.Tensor | int, batch: ClassBatch, log_denominator: tf.Tensor
) -> None:
    """Streams the classes again and moves them tile by tile.

    Args:
      read: as in `forward`.
      move: `move(begin, end, gradient)` receives the gradient `[end - begin, D]` of the mean loss for v of a tile
        and stores what the optimiser makes of it.
      num_local: as in `forward`.
      batch: as in `forward`.
      log_denominator: `[B]` from `forward`.
    """
    x, batch_rows = batch.embeddings, tf.shape(batch.embeddings)[0]
    everywhere = batch.smoothing / batch.num_classes * tf.reduce_sum(x, axis=0)  # [D] sum_i alpha / N x_i

    def body(begin: tf.Tensor, end: tf.Tensor, moved: tf.Tensor) -> tuple[tf.Tensor]:
        _, logits, row, column = _tile(read, begin, end, batch)
        expected = tf.matmul(tf.exp(logits - log_denominator[:, tf.newaxis]), x, transpose_a=True)  # [c, D]
        own = tf.math.unsorted_segment_sum(tf.gather(x, row), column, end - begin)
        gradient = expected - (1.0 - batch.smoothing) * own - everywhere
        move(begin, end, tf.math.divide_no_nan(gradient, tf.cast(batch_rows, tf.float32)))
        return (moved + end - begin,)

    _for_each_tile(body, (tf.constant(0),), num_local, batch_rows)


def _tile(read: ReadWeights, begin: tf.Tensor, end: tf.Tensor, batch: ClassBatch) -> tuple[tf.Tensor, ...]:
    weights = read(begin, end)  # [c, D]
    logits = tf.matmul(batch.embeddings, weights, transpose_b=True)  # [B, c]
    row = tf.where((batch.columns >= begin) & (batch.columns < end))[:, 0]  # [e] those whose own class is in the tile
    row = tf.cast(row, tf.int32)
    return weights, logits, row, tf.gather(batch.columns, row) - begin


def _for_each_tile(
    body: Callable[..., tuple], state: tuple, num_local: tf.Tensor | int, batch_rows: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Runs `state = body(begin, end, *state)` over tiles of classes, one at a time."""
    tile = tf.maximum(1, _TILE_ELEMENTS // tf.maximum(1, batch_rows))

    def step(begin: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        end = tf.minimum(begin + tile, num_local)
        return (end, *body(begin, end, *state))

    shapes = (tf.TensorShape([]), *(part.shape for part in state))
    return tf.while_loop(
        lambda begin, *_: begin < num_local, step, (tf.constant(0), *state), shapes, parallel_iterations=1
    )[1:]
