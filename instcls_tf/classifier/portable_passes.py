"""The two passes of the streamed softmax by TensorFlow's own operations: for GPUs, small temperatures, any machine.

XLA may compile what is dense in a tile: a GPU then sees six kernels for it and those of the labels, which are sparse.

Shapes use the legend of `softmax.py`.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, TypeVar

import tensorflow as tf

from instcls_tf.classifier import tiles
from instcls_tf.classifier.directions import Directions, directions_of
from instcls_tf.classifier.labels import Targets
from instcls_tf.classifier.local_classes import LocalClasses, Sgd
from instcls_tf.classifier.softmax import (
    Batch,
    PartialSums,
    Shift,
    Softmax,
    Totals,
    target_shares,
    target_terms,
)
from instcls_tf.distributed import collectives

_Dense = TypeVar("_Dense", bound=Callable[..., Any])


class _Tile(NamedTuple):
    """One tile of the streamed classes."""

    begin: tf.Tensor  # scalar int32, a position among the n streamed classes
    end: tf.Tensor
    local: tf.Tensor  # [c] int32 local classes
    weights: tf.Tensor  # [c, D] as stored
    directions: Directions
    logits: tf.Tensor  # [B, c]
    targets: Targets  # of this tile
    index: tf.Tensor  # [e, 2] where the targets stand in the tile: (row, column within the tile)
    target_logits: tf.Tensor  # [e]


class PortablePasses:
    """`softmax.Passes` of TensorFlow's operations; one tile of logits exists at a time.

    Args:
      classes: this worker's.
      softmax: which one.
      tile_classes: classes of a tile; None for as many as suit the device.
      xla: compile the dense part of a tile by XLA. It does so once for each shape, that of the last tile too.
    """

    def __init__(self, classes: LocalClasses, softmax: Softmax, tile_classes: int | None = None, xla: bool = False):
        self._classes, self._softmax, self._tile_classes = classes, softmax, tile_classes
        # The labels need the logits of a tile before the rest of it: so there are two functions for a pass.
        self._logits = _compiled(self._logits_of_tile) if xla else self._logits_of_tile
        self._sums = _compiled(self._sums_of_tile) if xla else self._sums_of_tile
        self._gradients = _compiled(self._gradients_of_tile) if xla else self._gradients_of_tile

    def local_maxima(self, batch: Batch) -> Shift | None:
        """The largest logit of each row, over all streamed classes and over its targets: an extra pass for small tau.

        Returns:
          -inf where this worker has none.
        """
        if not self._softmax.needs_shift:
            return None
        batch_rows = tf.shape(batch.embeddings)[0]
        lowest = tf.fill([batch_rows], -float("inf"))

        def body(tile: _Tile, maxima: Shift) -> Shift:
            of_targets = tf.math.unsorted_segment_max(tile.target_logits, tile.targets.row, batch_rows)
            return Shift(
                tf.maximum(maxima.logits, tf.reduce_max(tile.logits, axis=1)), tf.maximum(maxima.targets, of_targets)
            )

        return self._for_each_tile(body, Shift(lowest, lowest), batch)

    def forward(self, batch: Batch) -> PartialSums:
        """Streams this worker's classes once (steps 3 and 4)."""
        batch_rows, size = tf.shape(batch.embeddings)[0], batch.embeddings.shape[1]

        def by_row(values: tf.Tensor, tile: _Tile) -> tf.Tensor:
            return tf.math.unsorted_segment_sum(values, tile.targets.row, batch_rows)  # [B, ...]

        def body(tile: _Tile, sums: PartialSums) -> PartialSums:
            exp_sum, maxima, exp_weights = self._sums(tile.logits, tile.directions, batch.shift)
            terms, factors = target_terms(tile.target_logits, tile.targets, batch.shift, self._softmax.smoothing_loss)
            of_targets = tf.gather(tile.directions.unit, tile.index[:, 1])  # [e, D]
            return PartialSums(
                exp_sum=sums.exp_sum + exp_sum,
                target_sum=sums.target_sum + by_row(terms, tile),
                own_logit=sums.own_logit + by_row(tf.where(tile.targets.is_own, tile.target_logits, 0.0), tile),
                max_negative=tf.maximum(sums.max_negative, _max_negative(tile, maxima)),
                exp_weights=sums.exp_weights + exp_weights,
                target_weights=sums.target_weights + by_row(factors[:, tf.newaxis] * of_targets, tile),
            )

        zeros = tf.zeros([batch_rows])
        start = PartialSums(
            zeros, zeros, zeros, zeros - float("inf"), tf.zeros([batch_rows, size]), tf.zeros([batch_rows, size])
        )
        return self._for_each_tile(body, start, batch)

    def backward(self, batch: Batch, totals: Totals, sgd: Sgd) -> None:
        """Streams the classes again and moves them tile by tile (steps 6 and 8)."""
        loss = self._softmax.smoothing_loss
        batch_rows = tf.cast(tf.shape(batch.embeddings)[0], tf.float32)
        mean = batch.embeddings / self._softmax.temperature / batch_rows  # the loss is a mean over B rows
        # [B, D], so that exp(l) need not be divided: p_ij x_i = exp(l_ij) x_i / S_i
        expected = mean / totals.exp_sum[:, tf.newaxis]

        def body(tile: _Tile, moved: tf.Tensor) -> tf.Tensor:
            _, factors = target_terms(tile.target_logits, tile.targets, batch.shift, loss)
            shares = target_shares(factors, tile.targets, totals, loss)  # [e] q_ij
            target = tf.math.unsorted_segment_sum(
                shares[:, tf.newaxis] * tf.gather(mean, tile.targets.row), tile.index[:, 1], tile.end - tile.begin
            )  # [c, D]
            gradients = self._gradients(tile.logits, tile.directions, batch.shift, expected, target)
            with tf.control_dependencies([self._classes.move(tile.local, tile.weights, gradients, sgd)]):
                return moved + tile.end - tile.begin

        self._for_each_tile(body, tf.constant(0), batch)

    def _logits_of_tile(self, weights: tf.Tensor, scaled: tf.Tensor) -> tuple[Directions, tf.Tensor]:
        directions = directions_of(weights)
        return directions, self._product(scaled, directions.unit, transpose_b=True)  # [B, c]

    def _sums_of_tile(
        self, logits: tf.Tensor, directions: Directions, shift: Shift | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Over the classes of a tile: of exp `[B]`, the maxima of the logits `[B]`, and of exp w^ `[B, D]`."""
        exp = _exp_of_logits(logits, shift)  # [B, c]
        return tf.reduce_sum(exp, axis=1), tf.reduce_max(logits, axis=1), self._product(exp, directions.unit)

    def _gradients_of_tile(
        self, logits: tf.Tensor, directions: Directions, shift: Shift | None, expected: tf.Tensor, target: tf.Tensor
    ) -> tf.Tensor:
        """`[c, D]` for the weights of a tile, from `[B, D]` and what the labels take away, `[c, D]`."""
        toward = self._product(_exp_of_logits(logits, shift), expected, transpose_a=True) - target
        return directions.through_norm(toward)

    def _product(self, a: tf.Tensor, b: tf.Tensor, **transposed: bool) -> tf.Tensor:
        dtype = self._softmax.products_dtype
        return tf.cast(tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype), **transposed), tf.float32)

    def _for_each_tile(self, body: Callable[[_Tile, Any], Any], state: Any, batch: Batch) -> Any:
        """Runs `state = body(tile, state)` over tiles of the streamed classes."""
        scaled = batch.embeddings / self._softmax.temperature
        count = tf.constant(self._classes.count) if batch.streamed is None else tf.size(batch.streamed)
        width = self._tile_classes or tiles.portable_tile_classes(tf.shape(scaled)[0], scaled.shape[1], _tile_bytes())

        def step(begin: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
            end = tf.minimum(begin + width, count)
            tile = self._read_tile(batch, scaled, begin, end)
            # Broadcasting loses the static size of a batch of one row, which the loop does not allow.
            new = tf.nest.map_structure(lambda new, old: tf.ensure_shape(new, old.shape), body(tile, state), state)
            return end, new

        _, final = tf.while_loop(lambda begin, _: begin < count, step, (tf.constant(0), state), parallel_iterations=1)
        return final

    def _read_tile(self, batch: Batch, scaled: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> _Tile:
        local = tf.range(begin, end) if batch.streamed is None else batch.streamed[begin:end]
        weights = self._classes.read(local)  # [c, D]
        directions, logits = self._logits(weights, scaled)
        first, last = tf.unstack(tf.searchsorted(batch.targets.column, tf.stack([begin, end])))
        targets = Targets(*(part[first:last] for part in batch.targets))
        index = tf.stack([targets.row, targets.column - begin], axis=1)  # [e, 2]
        return _Tile(begin, end, local, weights, directions, logits, targets, index, tf.gather_nd(logits, index))


def _compiled(dense: _Dense) -> _Dense:
    return tf.function(dense, jit_compile=True, autograph=False, reduce_retracing=True)


def _tile_bytes() -> int:
    if tf.config.list_physical_devices("GPU"):
        return tiles.GPU_TILE_BYTES
    return tiles.cpu_tile_bytes(collectives.local_size())


def _exp_of_logits(logits: tf.Tensor, shift: Shift | None) -> tf.Tensor:
    return tf.exp(logits if shift is None else logits - shift.logits[:, tf.newaxis])


def _max_negative(tile: _Tile, maxima: tf.Tensor) -> tf.Tensor:
    """The largest logit of each row but its own class': ties with a negative are to count as a miss.

    Args:
      tile: of logits.
      maxima: `[B]` the largest of all.

    Returns:
      `[B]`.
    """
    own = tf.where(tile.targets.is_own)[:, 0]
    row, column = tf.unstack(tf.gather(tile.index, own), axis=1)  # [o]: the few rows that own a class of this tile
    others = tf.tensor_scatter_nd_update(
        tf.gather(tile.logits, row),
        tf.stack([tf.range(tf.size(row)), column], axis=1),
        tf.fill([tf.size(row)], -float("inf")),
    )  # [o, c]
    return tf.tensor_scatter_nd_update(maxima, row[:, tf.newaxis], tf.reduce_max(others, axis=1))
