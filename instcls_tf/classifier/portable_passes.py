"""The two passes of the streamed softmax by TensorFlow's own operations: for GPUs, and any machine without the kernels.

XLA may compile what is done with a tile: then a device is sent a few operations for each instead of fifty.

Shapes use the legend of `softmax.py`.
"""

from __future__ import annotations

import math
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

# XLA compiles anew for each number of labels: those of a tile are filled up to a power of two.
_FEWEST_LABELS = 64

_OnTile = TypeVar("_OnTile", bound=Callable[..., Any])


class _Tile(NamedTuple):
    """One tile of the streamed classes, and what meets it."""

    weights: tf.Tensor  # [c, D] as stored
    scaled: tf.Tensor  # [B, D] x^ / tau
    begin: tf.Tensor  # scalar int32, the position of its first class among the streamed ones
    targets: Targets  # [e]; for XLA some of the next tile follow
    labels: tf.Tensor  # scalar int32: how many of `targets` are on this tile


class _Logits(NamedTuple):
    """What is computed of a tile first, in every pass."""

    directions: Directions
    logits: tf.Tensor  # [B, c]
    targets: Targets  # [e]; `column` is counted within the tile, labels of 0 fill up
    of_targets: tf.Tensor  # [e] the logits of the targets


class PortablePasses:
    """`softmax.Passes` of TensorFlow's operations; one tile of logits exists at a time.

    Args:
      classes: this worker's.
      softmax: which one.
      tile_classes: classes of a tile; None for as many as suit the device.
      xla: compile what is done with a tile by XLA, once for each shape.

    Attributes:
      uses_xla: whether it does.
    """

    def __init__(self, classes: LocalClasses, softmax: Softmax, tile_classes: int | None = None, xla: bool = False):
        self._classes, self._softmax, self._tile_classes, self.uses_xla = classes, softmax, tile_classes, xla
        self._max_negative = _max_negative_by_mask if xla else _max_negative_by_rows
        self._maxima_of = _compiled(self._maxima_of_tile) if xla else self._maxima_of_tile
        self._sums_of = _compiled(self._sums_of_tile) if xla else self._sums_of_tile
        self._gradients_of = _compiled(self._gradients_of_tile) if xla else self._gradients_of_tile

    def local_maxima(self, batch: Batch) -> Shift | None:
        """The largest logit of each row, over all streamed classes and over its targets: an extra pass for small tau.

        Returns:
          -inf, or the lowest number there is, where this worker has none.
        """
        if not self._softmax.needs_shift:
            return None
        lowest = tf.fill([tf.shape(batch.embeddings)[0]], -float("inf"))

        def body(local: tf.Tensor, tile: _Tile, maxima: Shift) -> Shift:
            del local
            return self._maxima_of(tile, maxima)

        return self._for_each_tile(body, Shift(lowest, lowest), batch)

    def forward(self, batch: Batch) -> PartialSums:
        """Streams this worker's classes once (steps 3 and 4)."""
        batch_rows, size = tf.shape(batch.embeddings)[0], batch.embeddings.shape[1]
        zeros = tf.zeros([batch_rows])
        start = PartialSums(
            zeros, zeros, zeros, zeros - float("inf"), tf.zeros([batch_rows, size]), tf.zeros([batch_rows, size])
        )

        def body(local: tf.Tensor, tile: _Tile, sums: PartialSums) -> PartialSums:
            del local
            return self._sums_of(tile, batch.shift, sums)

        return self._for_each_tile(body, start, batch)

    def backward(self, batch: Batch, totals: Totals, sgd: Sgd) -> None:
        """Streams the classes again and moves them tile by tile (steps 6 and 8)."""
        batch_rows = tf.cast(tf.shape(batch.embeddings)[0], tf.float32)
        mean = batch.embeddings / self._softmax.temperature / batch_rows  # the loss is a mean over B rows
        # [B, D], so that exp(l) need not be divided: p_ij x_i = exp(l_ij) x_i / S_i
        expected = mean / totals.exp_sum[:, tf.newaxis]

        def body(local: tf.Tensor, tile: _Tile, moved: tf.Tensor) -> tf.Tensor:
            gradients = self._gradients_of(tile, batch.shift, totals, mean, expected)
            with tf.control_dependencies([self._classes.move(local, tile.weights, gradients, sgd)]):
                return moved + tf.size(local)

        self._for_each_tile(body, tf.constant(0), batch)

    def _maxima_of_tile(self, tile: _Tile, maxima: Shift) -> Shift:
        """The maxima so far, and those over a tile."""
        _, logits, targets, of_targets = self._logits_of(tile)
        of_rows = tf.math.unsorted_segment_max(of_targets, targets.row, tf.shape(logits)[0])
        return Shift(tf.maximum(maxima.logits, tf.reduce_max(logits, axis=1)), tf.maximum(maxima.targets, of_rows))

    def _sums_of_tile(self, tile: _Tile, shift: Shift | None, sums: PartialSums) -> PartialSums:
        """The sums so far and those over a tile."""
        (unit, _), logits, targets, of_targets = self._logits_of(tile)
        exp = _exp(logits, shift)  # [B, c]
        terms, factors = target_terms(of_targets, targets, shift, self._softmax.smoothing_loss)

        def by_row(values: tf.Tensor) -> tf.Tensor:
            return tf.math.unsorted_segment_sum(values, targets.row, tf.shape(logits)[0])  # [B, ...]

        return PartialSums(
            exp_sum=sums.exp_sum + tf.reduce_sum(exp, axis=1),
            target_sum=sums.target_sum + by_row(terms),
            own_logit=sums.own_logit + by_row(tf.where(targets.is_own, of_targets, 0.0)),
            max_negative=tf.maximum(sums.max_negative, self._max_negative(logits, targets)),
            exp_weights=sums.exp_weights + self._product(exp, unit),
            target_weights=sums.target_weights + by_row(factors[:, tf.newaxis] * tf.gather(unit, targets.column)),
        )

    def _gradients_of_tile(
        self, tile: _Tile, shift: Shift | None, totals: Totals, mean: tf.Tensor, expected: tf.Tensor
    ) -> tf.Tensor:
        """`[c, D]` for the weights of a tile, from what the labels and the softmax take of the rows, both `[B, D]`."""
        directions, logits, targets, of_targets = self._logits_of(tile)
        loss = self._softmax.smoothing_loss
        _, factors = target_terms(of_targets, targets, shift, loss)
        shares = target_shares(factors, targets, totals, loss)  # [e] q_ij
        target = tf.math.unsorted_segment_sum(
            shares[:, tf.newaxis] * tf.gather(mean, targets.row), targets.column, tf.shape(logits)[1]
        )  # [c, D]
        toward = self._product(_exp(logits, shift), expected, transpose_a=True) - target  # [c, D]
        return directions.through_norm(toward)

    def _logits_of(self, tile: _Tile) -> _Logits:
        directions = directions_of(tile.weights)
        logits = self._product(tile.scaled, directions.unit, transpose_b=True)  # [B, c]
        targets = tile.targets._replace(column=tile.targets.column - tile.begin)
        if not self.uses_xla:
            return _Logits(directions, logits, targets, tf.gather_nd(logits, _places(targets)))
        here = tf.range(tf.size(targets.row)) < tile.labels
        targets = Targets(*(tf.where(here, part, tf.zeros_like(part)) for part in targets))
        # What fills up is to be nobody's maximum, and its exp finite after any shift.
        of_targets = tf.where(here, tf.gather_nd(logits, _places(targets)), -1 / self._softmax.temperature)
        return _Logits(directions, logits, targets, of_targets)

    def _product(self, a: tf.Tensor, b: tf.Tensor, **transposed: bool) -> tf.Tensor:
        dtype = self._softmax.products_dtype
        return tf.cast(tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype), **transposed), tf.float32)

    def _for_each_tile(self, body: Callable[[tf.Tensor, _Tile, Any], Any], state: Any, batch: Batch) -> Any:
        """Runs `state = body(local classes [c], tile, state)` over tiles of the streamed classes."""
        scaled = batch.embeddings / self._softmax.temperature
        count = tf.constant(self._classes.count) if batch.streamed is None else tf.size(batch.streamed)
        width = self._tile_classes or tiles.portable_tile_classes(tf.shape(scaled)[0], scaled.shape[1], _tile_bytes())
        edges = tf.searchsorted(batch.targets.column, tf.range(0, count + width, width))  # labels before each tile
        targets, filled = batch.targets, None
        if self.uses_xla:
            filled = _power_of_two(tf.reduce_max(edges[1:] - edges[:-1]))
            targets = Targets(*(tf.pad(part, [[0, filled]]) for part in targets))

        def step(index: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
            begin = index * width
            end = tf.minimum(begin + width, count)
            local = tf.range(begin, end) if batch.streamed is None else batch.streamed[begin:end]
            first, last = edges[index], edges[index + 1]
            labels = Targets(*(part[first : last if filled is None else first + filled] for part in targets))
            tile = _Tile(self._classes.read(local), scaled, begin, labels, last - first)
            # Broadcasting loses the static size of a batch of one row, which the loop does not allow.
            new = tf.nest.map_structure(
                lambda new, old: tf.ensure_shape(new, old.shape), body(local, tile, state), state
            )
            return index + 1, new

        loop = (lambda index, _: index * width < count), step, (tf.constant(0), state)
        return tf.while_loop(*loop, parallel_iterations=1)[1]


def _compiled(on_tile: _OnTile) -> _OnTile:
    return tf.function(on_tile, jit_compile=True, autograph=False, reduce_retracing=True)


def _tile_bytes() -> int:
    if tf.config.list_physical_devices("GPU"):
        return tiles.GPU_TILE_BYTES
    return tiles.cpu_tile_bytes(collectives.local_size())


def _power_of_two(number: tf.Tensor) -> tf.Tensor:
    """The smallest one that is not below a scalar int32, nor below `_FEWEST_LABELS`."""
    doublings = tf.math.ceil(tf.math.log(tf.cast(tf.maximum(number, _FEWEST_LABELS), tf.float64)) / math.log(2))
    return tf.bitwise.left_shift(1, tf.cast(doublings, tf.int32))


def _places(targets: Targets) -> tf.Tensor:
    """`[e, 2]` where they stand in a tile of logits."""
    return tf.stack([targets.row, targets.column], axis=1)


def _exp(logits: tf.Tensor, shift: Shift | None) -> tf.Tensor:
    return tf.exp(logits if shift is None else logits - shift.logits[:, tf.newaxis])


# `[B]` the largest logit of each row but its own class': ties with a negative are to count as a miss. Without XLA each
# operation over a tile costs, with it the number of rows has to be known.


def _max_negative_by_rows(logits: tf.Tensor, targets: Targets) -> tf.Tensor:
    own = tf.where(targets.is_own)[:, 0]
    row, column = tf.gather(targets.row, own), tf.gather(targets.column, own)  # [o]: the few rows that own a class here
    others = tf.tensor_scatter_nd_update(
        tf.gather(logits, row),
        tf.stack([tf.range(tf.size(row)), column], axis=1),
        tf.fill([tf.size(row)], -float("inf")),
    )  # [o, c]
    return tf.tensor_scatter_nd_update(tf.reduce_max(logits, axis=1), row[:, tf.newaxis], tf.reduce_max(others, axis=1))


def _max_negative_by_mask(logits: tf.Tensor, targets: Targets) -> tf.Tensor:
    rows, classes = tf.unstack(tf.shape(logits))
    own = tf.math.unsorted_segment_max(tf.where(targets.is_own, targets.column, -1), targets.row, rows)  # [B]
    is_own = own[:, tf.newaxis] == tf.range(classes)
    return tf.reduce_max(tf.where(is_own, -float("inf"), logits), axis=1)
