"""The streamed softmax: tile maths of Eq. 1 and Eq. 3 on one worker's classes, without any communication.

Logits l_ij = cos(w_j, x_i) / tau exist for one tile of classes at a time. Two passes make a training step:

  forward pass   per row: S = sum_j exp(l_ij), G = sum_j exp(l_ij) w^_j and the sparse target terms. They are sums over
                 classes, so summing them over the workers completes them, and they hold all that the loss and its
                 gradient for the embeddings need: no logits are kept.
  backward pass  recomputes a tile's logits, turns them into probabilities minus targets and hands the gradient of the
                 tile's rows to the caller, who applies it at once.

Legend of the shape comments:
  N, n  classes: all of them; the ones this worker streams      B  rows of the global batch (all workers, all views)
  D     embedding size                                          K  hard negatives per class
  E     non-zero labels that fall on this worker's classes      c  classes of one tile
  x^, w^  L2-normalised embeddings and class weights            i, j  a row; a class

Every loss is a mean over the B rows of the global batch: dividing by B happens here, once.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import tensorflow as tf

from instcls_tf import tiles
from instcls_tf.labels import Targets

MARGINAL = "marginal"
CROSS_ENTROPY = "cross_entropy"
SMOOTHING_LOSSES = (MARGINAL, CROSS_ENTROPY)

# Down to this temperature exp(l) and its sums over any number of classes stay within float32, since |l| <= 1 / tau:
# no shift is needed. Below it the rows' true maxima are.
SMALLEST_UNSHIFTED_TEMPERATURE = 0.025

ReadRows = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Shift(NamedTuple):
    """What is subtracted from logits before exp at small temperatures, to keep float32 in range."""

    logits: tf.Tensor  # [B]
    targets: tf.Tensor  # [B], for the sum over targets, whose logits may lie far below the row's maximum


class PartialSums(NamedTuple):
    """One worker's terms of the forward pass; all but the maximum are summed over the workers."""

    exp_sum: tf.Tensor  # [B] S: sum_j exp(l_ij - shift)
    target_sum: tf.Tensor  # [B] sum_j y_ij exp(l_ij - shift), or sum_j y_ij l_ij for the cross-entropy
    own_logit: tf.Tensor  # [B] l_ii where this worker owns class i, else 0
    max_negative: tf.Tensor  # [B] max_{j != i} l_ij
    exp_weights: tf.Tensor  # [B, D] G: sum_j exp(l_ij - shift) w^_j
    target_weights: tf.Tensor  # [B, D] sum_j y_ij exp(l_ij - shift) w^_j, or sum_j y_ij w^_j


class Tile(NamedTuple):
    """One tile of the streamed classes."""

    begin: tf.Tensor  # scalar int32, a position among the n streamed classes
    end: tf.Tensor
    rows: tf.Tensor  # [c, D] class weights as stored
    directions: tf.Tensor  # [c, D] w^
    inverse_norms: tf.Tensor  # [c, 1] 1 / |w|
    logits: tf.Tensor  # [B, c]
    targets: Targets  # of this tile
    index: tf.Tensor  # [e, 2] where the targets stand in the tile: (row, column within the tile)
    target_logits: tf.Tensor  # [e]


UpdateRows = Callable[[Tile, tf.Tensor], tf.Operation]


def row_maxima(
    read: ReadRows,
    num_classes: tf.Tensor,
    embeddings: tf.Tensor,
    targets: Targets,
    temperature: float,
    products_dtype: tf.DType = tf.float32,
) -> Shift:
    """The largest logit of each row, over all streamed classes and over its targets: an extra pass for small tau.

    Returns:
      A `Shift` of this worker's maxima; -inf where it has none. The maximum over workers completes them.
    """
    batch_rows = tf.shape(embeddings)[0]
    lowest = tf.fill([batch_rows], -float("inf"))

    def body(tile: Tile, maxima: Shift) -> Shift:
        of_targets = tf.math.unsorted_segment_max(tile.target_logits, tile.targets.row, batch_rows)
        return Shift(
            tf.maximum(maxima.logits, tf.reduce_max(tile.logits, axis=1)), tf.maximum(maxima.targets, of_targets)
        )

    stream = (read, num_classes, embeddings / temperature, targets, products_dtype)
    return _for_each_tile(body, Shift(lowest, lowest), *stream)


def forward_pass(
    read: ReadRows,
    num_classes: tf.Tensor,
    embeddings: tf.Tensor,
    targets: Targets,
    shift: Shift | None,
    temperature: float,
    smoothing_loss: str,
    products_dtype: tf.DType = tf.float32,
) -> PartialSums:
    """Streams this worker's classes once (steps 3 and 4).

    Args:
      read: `read(begin, end)` returns the class weights `[end - begin, D]` of those streamed classes, float32.
      num_classes: scalar int32 n, how many classes this worker streams.
      embeddings: `[B, D]` float32, L2-normalised, of the whole global batch.
      targets: the labels on the streamed classes.
      shift: see `Shift`; the same on all workers; None from `SMALLEST_UNSHIFTED_TEMPERATURE` on.
      temperature: tau.
      smoothing_loss: `marginal` (Eq. 3 as printed) or `cross_entropy`.
      products_dtype: float32, or bfloat16 for the factors and results of matrix products.
    """
    batch_rows, size = tf.shape(embeddings)[0], embeddings.shape[1]

    def by_row(values: tf.Tensor, tile: Tile) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(values, tile.targets.row, batch_rows)  # [B, ...]

    def body(tile: Tile, sums: PartialSums) -> PartialSums:
        exp = _exp_of_logits(tile, shift)  # [B, c]
        target_terms, coefficients = _target_terms(tile, shift, smoothing_loss)
        directions = tf.gather(tile.directions, tile.targets.column - tile.begin)  # [e, D]
        return PartialSums(
            exp_sum=sums.exp_sum + tf.reduce_sum(exp, axis=1),
            target_sum=sums.target_sum + by_row(target_terms, tile),
            own_logit=sums.own_logit + by_row(tf.where(tile.targets.is_own, tile.target_logits, 0.0), tile),
            max_negative=tf.maximum(sums.max_negative, _max_negative(tile)),
            exp_weights=sums.exp_weights + _product(exp, tile.directions, products_dtype),
            target_weights=sums.target_weights + by_row(coefficients[:, tf.newaxis] * directions, tile),
        )

    zeros = tf.zeros([batch_rows])
    start = PartialSums(
        zeros, zeros, zeros, zeros - float("inf"), tf.zeros([batch_rows, size]), tf.zeros([batch_rows, size])
    )
    return _for_each_tile(body, start, read, num_classes, embeddings / temperature, targets, products_dtype)


def _max_negative(tile: Tile) -> tf.Tensor:
    """`[B]` the largest logit of each row but its own class': ties with a negative are to count as a miss."""
    own = tf.where(tile.targets.is_own)[:, 0]
    row, column = tf.unstack(tf.gather(tile.index, own), axis=1)  # [o]: the few rows that own a class of this tile
    others = tf.tensor_scatter_nd_update(
        tf.gather(tile.logits, row),
        tf.stack([tf.range(tf.size(row)), column], axis=1),
        tf.fill([tf.size(row)], -float("inf")),
    )  # [o, c]
    return tf.tensor_scatter_nd_update(
        tf.reduce_max(tile.logits, axis=1), row[:, tf.newaxis], tf.reduce_max(others, axis=1)
    )


def loss_per_row(exp_sum: tf.Tensor, target_sum: tf.Tensor, shift: Shift | None, smoothing_loss: str) -> tf.Tensor:
    """Step 5: Eq. 1 and Eq. 3 from sums that are complete over all workers; `[B]`."""
    log_denominator = tf.math.log(exp_sum) + (0.0 if shift is None else shift.logits)
    if smoothing_loss == MARGINAL:
        return log_denominator - tf.math.log(target_sum) - (0.0 if shift is None else shift.targets)
    return log_denominator - target_sum


def embedding_gradient(
    local: PartialSums, exp_sum: tf.Tensor, target_sum: tf.Tensor, temperature: float, smoothing_loss: str
) -> tf.Tensor:
    """Step 6: this worker's part of the mean loss' gradient for the normalised embeddings.

    `dx^_i = (sum_j p_ij w^_j - sum_j q_ij w^_j) / (tau B)`, where q is the labels' share `y p / sum y p` for Eq. 3 and
    y itself for the cross-entropy.

    Args:
      local: this worker's partial sums.
      exp_sum: `[B]`, complete over all workers.
      target_sum: `[B]`, complete over all workers.
      temperature: tau.
      smoothing_loss: `marginal` or `cross_entropy`.

    Returns:
      `[B, D]`; the sum over the workers is the gradient.
    """
    batch_rows = tf.cast(tf.shape(exp_sum)[0], tf.float32)
    expected = local.exp_weights / exp_sum[:, tf.newaxis]
    target = local.target_weights
    if smoothing_loss == MARGINAL:
        target /= target_sum[:, tf.newaxis]
    return (expected - target) / (temperature * batch_rows)


def backward_pass(
    read: ReadRows,
    update: UpdateRows,
    num_classes: tf.Tensor,
    embeddings: tf.Tensor,
    targets: Targets,
    shift: Shift | None,
    exp_sum: tf.Tensor,
    target_sum: tf.Tensor,
    temperature: float,
    smoothing_loss: str,
    products_dtype: tf.DType = tf.float32,
) -> tf.Tensor:
    """Streams the classes again and moves them tile by tile (steps 6 and 8).

    Args:
      read: as in `forward_pass`.
      update: `update(tile, gradients)` receives the gradient `[c, D]` of the mean loss for the class weights of a tile
        and stores what the optimiser makes of it.
      num_classes: as in `forward_pass`.
      embeddings: as in `forward_pass`.
      targets: as in `forward_pass`.
      shift: as in `forward_pass`.
      exp_sum: `[B]`, complete over all workers.
      target_sum: `[B]`, complete over all workers.
      temperature: tau.
      smoothing_loss: `marginal` or `cross_entropy`.
      products_dtype: as in `forward_pass`.

    Returns:
      How many classes were moved, to depend on.
    """
    scaled = embeddings / temperature
    mean = scaled / tf.cast(tf.shape(embeddings)[0], tf.float32)  # the loss is a mean over B rows
    expected = (
        mean / exp_sum[:, tf.newaxis]
    )  # [B, D], so that exp(l) need not be divided: p_ij x_i = exp(l_ij) x_i / S_i

    def body(tile: Tile, moved: tf.Tensor) -> tf.Tensor:
        _, coefficients = _target_terms(tile, shift, smoothing_loss)
        if smoothing_loss == MARGINAL:
            coefficients /= tf.gather(target_sum, tile.targets.row)  # [e] q_ij
        target = tf.math.unsorted_segment_sum(
            coefficients[:, tf.newaxis] * tf.gather(mean, tile.targets.row), tile.index[:, 1], tile.end - tile.begin
        )  # [c, D]
        toward = (
            _product(_exp_of_logits(tile, shift), expected, products_dtype, transpose_a=True) - target
        )  # [c, D] for w^
        # Through w^ = w / |w|: only the part across w^ moves the cosine.
        along = tf.reduce_sum(toward * tile.directions, axis=1, keepdims=True)  # [c, 1]
        gradients = (toward - along * tile.directions) * tile.inverse_norms
        with tf.control_dependencies([update(tile, gradients)]):
            return moved + tile.end - tile.begin

    return _for_each_tile(body, tf.constant(0), read, num_classes, scaled, targets, products_dtype)


def _exp_of_logits(tile: Tile, shift: Shift | None) -> tf.Tensor:
    return tf.exp(tile.logits if shift is None else tile.logits - shift.logits[:, tf.newaxis])


def _target_terms(tile: Tile, shift: Shift | None, smoothing_loss: str) -> tuple[tf.Tensor, tf.Tensor]:
    """`[e]` terms of the target sum, and `[e]` weights of w^ in its gradient before any division."""
    if smoothing_loss == MARGINAL:
        logits = (
            tile.target_logits if shift is None else tile.target_logits - tf.gather(shift.targets, tile.targets.row)
        )
        terms = tile.targets.label * tf.exp(logits)
        return terms, terms
    return tile.targets.label * tile.target_logits, tile.targets.label


def _product(a: tf.Tensor, b: tf.Tensor, dtype: tf.DType, **transposed: bool) -> tf.Tensor:
    return tf.cast(tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype), **transposed), tf.float32)


def _for_each_tile(body, state, read: ReadRows, num_classes, scaled: tf.Tensor, targets: Targets, products_dtype):
    """Runs `state = body(tile, state)` over tiles of classes; one tile of logits exists at a time."""
    batch_rows = tf.shape(scaled)[0]
    tile_classes = tiles.tile_classes(batch_rows, scaled.shape[1])

    def step(begin, state):
        end = tf.minimum(begin + tile_classes, num_classes)
        rows = read(begin, end)  # [c, D]
        inverse_norms = tf.math.rsqrt(
            tf.maximum(tf.reduce_sum(tf.square(rows), axis=1, keepdims=True), 1e-24)
        )  # [c, 1]
        directions = rows * inverse_norms
        logits = _product(scaled, directions, products_dtype, transpose_b=True)  # [B, c]
        first, last = tf.unstack(tf.searchsorted(targets.column, tf.stack([begin, end])))
        in_tile = Targets(*(part[first:last] for part in targets))
        index = tf.stack([in_tile.row, in_tile.column - begin], axis=1)  # [e, 2]
        target_logits = tf.gather_nd(logits, index)
        tile = Tile(begin, end, rows, directions, inverse_norms, logits, in_tile, index, target_logits)
        # Broadcasting loses the static size of a batch of one row, which the loop does not allow.
        return end, tf.nest.map_structure(lambda new, old: tf.ensure_shape(new, old.shape), body(tile, state), state)

    _, final = tf.while_loop(lambda begin, _: begin < num_classes, step, (tf.constant(0), state), parallel_iterations=1)
    return final
