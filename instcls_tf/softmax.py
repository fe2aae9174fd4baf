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

MARGINAL = "marginal"
CROSS_ENTROPY = "cross_entropy"
SMOOTHING_LOSSES = (MARGINAL, CROSS_ENTROPY)

# Below this temperature exp(l - 1/tau), at least exp(-2/tau), can underflow in float32 (at exp(-87.3): TensorFlow
# flushes what is smaller to 0), so the rows' true maxima are needed.
SMALLEST_CONSTANT_SHIFT_TEMPERATURE = 0.025

# Elements of one tile of logits, [B, c]: small enough for the last-level cache, large enough for fast products.
_TILE_ELEMENTS = 2**21
_MIN_TILE_CLASSES = 256

ReadRows = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
UpdateRows = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Operation]


class Targets(NamedTuple):
    """The labels y_ij > 0 on this worker's streamed classes, sorted by class."""

    row: tf.Tensor  # [E] int32: i
    column: tf.Tensor  # [E] int32: j as a position among the n streamed classes
    label: tf.Tensor  # [E] float32: y_ij
    is_own: tf.Tensor  # [E] bool: j is the row's own class


class Shift(NamedTuple):
    """What is subtracted from logits before exp; any value is exact, a good one keeps float32 in range."""

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


class _Tile(NamedTuple):
    begin: tf.Tensor
    end: tf.Tensor
    rows: tf.Tensor  # [c, D] class weights as stored
    directions: tf.Tensor  # [c, D] w^
    norms: tf.Tensor  # [c, 1]
    logits: tf.Tensor  # [B, c]
    targets: Targets  # of this tile
    index: tf.Tensor  # [e, 2] where the targets stand in the tile: (row, column within the tile)
    target_logits: tf.Tensor  # [e]


def label_distribution(
    own_classes: tf.Tensor, hard_negatives: tf.Tensor | None, smoothing: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Eq. 2: 1 - alpha on the row's own class, alpha / K on its K hard negatives, 0 elsewhere.

    Args:
      own_classes: `[B]` integer instance ids.
      hard_negatives: `[B, K]` class ids, or None for plain one-hot labels.
      smoothing: alpha.

    Returns:
      `[B, K + 1]` class ids and float32 labels of the non-zero places; the own class comes first.
    """
    own = own_classes[:, tf.newaxis]  # [B, 1]
    if hard_negatives is None or smoothing == 0:
        return own, tf.ones_like(own, tf.float32)
    num_hard = tf.shape(hard_negatives)[1]
    classes = tf.concat([own, tf.cast(hard_negatives, own.dtype)], axis=1)  # [B, K+1]
    row = tf.concat([[1.0 - smoothing], tf.fill([num_hard], smoothing / tf.cast(num_hard, tf.float32))], axis=0)
    return classes, tf.broadcast_to(row, tf.shape(classes))


def select_targets(columns: tf.Tensor, labels: tf.Tensor) -> Targets:
    """Keeps the places that fall on streamed classes and sorts them by class.

    Args:
      columns: `[B, K + 1]` int32 positions among the streamed classes, -1 for a class of another worker.
      labels: `[B, K + 1]` float32 y.
    """
    place = tf.where(columns >= 0)  # [E, 2] int64
    column = tf.gather_nd(columns, place)
    order = tf.argsort(column, stable=True)
    place = tf.cast(tf.gather(place, order), tf.int32)
    return Targets(
        row=place[:, 0],
        column=tf.gather(column, order),
        label=tf.gather_nd(labels, place),
        is_own=place[:, 1] == 0,
    )


def constant_shift(batch_rows: tf.Tensor, temperature: float) -> Shift:
    """1 / tau for every row: cosine logits never exceed it, so no communication is needed."""
    shift = tf.fill([batch_rows], tf.constant(1.0 / temperature, tf.float32))
    return Shift(shift, shift)


def row_maxima(
    read: ReadRows, num_classes: tf.Tensor, embeddings: tf.Tensor, targets: Targets, temperature: float
) -> Shift:
    """The largest logit of each row, over all streamed classes and over its targets: an extra pass for small tau.

    Returns:
      A `Shift` of this worker's maxima; -inf where it has none. The maximum over workers completes them.
    """
    batch_rows = tf.shape(embeddings)[0]
    lowest = tf.fill([batch_rows], -float("inf"))

    def body(tile: _Tile, maxima: Shift) -> Shift:
        of_targets = tf.math.unsorted_segment_max(tile.target_logits, tile.targets.row, batch_rows)
        return Shift(
            tf.maximum(maxima.logits, tf.reduce_max(tile.logits, axis=1)), tf.maximum(maxima.targets, of_targets)
        )

    return _for_each_tile(body, Shift(lowest, lowest), read, num_classes, embeddings / temperature, targets)


def forward_pass(
    read: ReadRows,
    num_classes: tf.Tensor,
    embeddings: tf.Tensor,
    targets: Targets,
    shift: Shift,
    temperature: float,
    smoothing_loss: str,
) -> PartialSums:
    """Streams this worker's classes once (steps 3 and 4).

    Args:
      read: `read(begin, end)` returns the class weights `[end - begin, D]` of those streamed classes, float32.
      num_classes: scalar int32 n, how many classes this worker streams.
      embeddings: `[B, D]` float32, L2-normalised, of the whole global batch.
      targets: the labels on the streamed classes.
      shift: see `Shift`; the same on all workers.
      temperature: tau.
      smoothing_loss: `marginal` (Eq. 3 as printed) or `cross_entropy`.
    """
    batch_rows, size = tf.shape(embeddings)[0], embeddings.shape[1]

    def by_row(values: tf.Tensor, tile: _Tile) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(values, tile.targets.row, batch_rows)  # [B, ...]

    def body(tile: _Tile, sums: PartialSums) -> PartialSums:
        # The own class leaves the stream and comes back through the sparse part: what remains are negatives, whose
        # maximum decides whether an instance is recognised. Ties with a negative count as a miss.
        own = tf.where(tile.targets.is_own)[:, 0]
        negatives = tf.tensor_scatter_nd_update(
            tile.logits, tf.gather(tile.index, own), tf.fill([tf.size(own)], -float("inf"))
        )  # [B, c]
        exp_negatives = tf.exp(negatives - shift.logits[:, tf.newaxis])  # [B, c]
        exp_own = tf.where(
            tile.targets.is_own, tf.exp(tile.target_logits - tf.gather(shift.logits, tile.targets.row)), 0.0
        )
        target_terms, coefficients = _target_terms(tile, shift, smoothing_loss)
        directions = tf.gather(tile.directions, tile.targets.column - tile.begin)  # [e, D]
        return PartialSums(
            exp_sum=sums.exp_sum + tf.reduce_sum(exp_negatives, axis=1) + by_row(exp_own, tile),
            target_sum=sums.target_sum + by_row(target_terms, tile),
            own_logit=sums.own_logit + by_row(tf.where(tile.targets.is_own, tile.target_logits, 0.0), tile),
            max_negative=tf.maximum(sums.max_negative, tf.reduce_max(negatives, axis=1)),
            exp_weights=sums.exp_weights
            + tf.matmul(exp_negatives, tile.directions)
            + by_row(exp_own[:, tf.newaxis] * directions, tile),
            target_weights=sums.target_weights + by_row(coefficients[:, tf.newaxis] * directions, tile),
        )

    zeros = tf.zeros([batch_rows])
    start = PartialSums(
        zeros, zeros, zeros, zeros - float("inf"), tf.zeros([batch_rows, size]), tf.zeros([batch_rows, size])
    )
    return _for_each_tile(body, start, read, num_classes, embeddings / temperature, targets)


def loss_per_row(exp_sum: tf.Tensor, target_sum: tf.Tensor, shift: Shift, smoothing_loss: str) -> tf.Tensor:
    """Step 5: Eq. 1 and Eq. 3 from sums that are complete over all workers; `[B]`."""
    log_denominator = tf.math.log(exp_sum) + shift.logits
    if smoothing_loss == MARGINAL:
        return log_denominator - (tf.math.log(target_sum) + shift.targets)
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
    shift: Shift,
    exp_sum: tf.Tensor,
    target_sum: tf.Tensor,
    temperature: float,
    smoothing_loss: str,
) -> tf.Tensor:
    """Streams the classes again and moves them tile by tile (steps 6 and 8).

    Args:
      read: as in `forward_pass`.
      update: `update(begin, end, rows, gradients)` receives a tile's class weights and the gradient of the mean loss
        for them, both `[end - begin, D]`, and stores what the optimiser makes of them.
      num_classes: as in `forward_pass`.
      embeddings: as in `forward_pass`.
      targets: as in `forward_pass`.
      shift: as in `forward_pass`.
      exp_sum: `[B]`, complete over all workers.
      target_sum: `[B]`, complete over all workers.
      temperature: tau.
      smoothing_loss: `marginal` or `cross_entropy`.

    Returns:
      How many classes were moved, to depend on.
    """
    scaled = embeddings / temperature
    gradient_scale = 1.0 / tf.cast(tf.shape(embeddings)[0], tf.float32)
    log_denominator = (tf.math.log(exp_sum) + shift.logits)[:, tf.newaxis]  # [B, 1]

    def body(tile: _Tile, moved: tf.Tensor) -> tf.Tensor:
        _, coefficients = _target_terms(tile, shift, smoothing_loss)
        if smoothing_loss == MARGINAL:
            coefficients /= tf.gather(target_sum, tile.targets.row)  # [e] q_ij
        probabilities = tf.exp(tile.logits - log_denominator)  # [B, c] p_ij
        residuals = tf.tensor_scatter_nd_sub(probabilities, tile.index, coefficients)  # [B, c] p_ij - q_ij
        toward = tf.matmul(residuals, scaled, transpose_a=True) * gradient_scale  # [c, D] gradient for w^
        # Through w^ = w / |w|: only the part across w^ moves the cosine.
        along = tf.reduce_sum(toward * tile.directions, axis=1, keepdims=True)
        gradients = (toward - along * tile.directions) / tile.norms
        with tf.control_dependencies([update(tile.begin, tile.end, tile.rows, gradients)]):
            return moved + tile.end - tile.begin

    return _for_each_tile(body, tf.constant(0), read, num_classes, scaled, targets)


def _target_terms(tile: _Tile, shift: Shift, smoothing_loss: str) -> tuple[tf.Tensor, tf.Tensor]:
    """`[e]` terms of the target sum, and `[e]` weights of w^ in its gradient before any division."""
    if smoothing_loss == MARGINAL:
        terms = tile.targets.label * tf.exp(tile.target_logits - tf.gather(shift.targets, tile.targets.row))
        return terms, terms
    return tile.targets.label * tile.target_logits, tile.targets.label


def _for_each_tile(body, state, read: ReadRows, num_classes: tf.Tensor, scaled: tf.Tensor, targets: Targets):
    """Runs `state = body(tile, state)` over tiles of classes; one tile of logits exists at a time."""
    batch_rows = tf.shape(scaled)[0]
    tile_classes = tf.maximum(_MIN_TILE_CLASSES, _TILE_ELEMENTS // tf.maximum(1, batch_rows))

    def step(begin, state):
        end = tf.minimum(begin + tile_classes, num_classes)
        rows = read(begin, end)  # [c, D]
        norms = tf.maximum(tf.norm(rows, axis=1, keepdims=True), 1e-12)  # [c, 1]
        directions = rows / norms
        logits = tf.matmul(scaled, directions, transpose_b=True)  # [B, c]
        first, last = tf.unstack(tf.searchsorted(targets.column, tf.stack([begin, end])))
        in_tile = Targets(*(part[first:last] for part in targets))
        index = tf.stack([in_tile.row, in_tile.column - begin], axis=1)  # [e, 2]
        tile = _Tile(begin, end, rows, directions, norms, logits, in_tile, index, tf.gather_nd(logits, index))
        # Broadcasting loses the static size of a batch of one row, which the loop does not allow.
        return end, tf.nest.map_structure(lambda new, old: tf.ensure_shape(new, old.shape), body(tile, state), state)

    _, final = tf.while_loop(lambda begin, _: begin < num_classes, step, (tf.constant(0), state), parallel_iterations=1)
    return final
