"""One array of a worker's classes, their weights or the momentum of these, in the dtype that it is kept in."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from instcls_tf.classifier import int8_rows, stochastic_rounding


class Table(NamedTuple):
    """Rows that are computed with in float32, whatever they are kept in."""

    values: tf.Variable  # [n, D] float32, bfloat16 or int8
    scales: tf.Variable | None = None  # [n] float32, of int8 alone

    def read(self, local: tf.Tensor) -> tf.Tensor:
        """Some rows, `[m, D]` float32; never touches the others (`read_value()` copies all)."""
        values = self.values.sparse_read(local)
        if self.scales is None:
            return tf.cast(values, tf.float32)
        return int8_rows.values_of(values, self.scales.sparse_read(local))

    def write(self, local: tf.Tensor, values: tf.Tensor) -> None:
        """Replaces some rows by `[m, D]` float32, rounded to the nearest; what `read` has returned is not rounded."""
        if self.scales is None:
            self.values.scatter_update(tf.IndexedSlices(tf.cast(values, self.values.dtype), local))
            return
        scales = int8_rows.next_scales(values, tf.zeros_like(values[:, 0]))
        self.scales.scatter_update(tf.IndexedSlices(scales, local))
        self.values.scatter_update(tf.IndexedSlices(int8_rows.round_to_nearest(values, scales), local))

    def move(self, local: tf.Tensor, values: tf.Tensor, draw: stochastic_rounding.Draw) -> tf.Operation:
        """Replaces some rows by `[m, D]` float32 that a step has made of them, rounded stochastically."""
        if self.scales is None:
            rounded = values if self.values.dtype == tf.float32 else stochastic_rounding.to_bfloat16(values, draw)
            return self.values.scatter_update(tf.IndexedSlices(rounded, local))
        scales = int8_rows.next_scales(values, self.scales.sparse_read(local))
        numbers = int8_rows.round_stochastically(values, scales, stochastic_rounding.random_bits(draw, values.shape[1]))
        self.scales.scatter_update(tf.IndexedSlices(scales, local))
        return self.values.scatter_update(tf.IndexedSlices(numbers, local))
