"""Class weights by their direction alone: w^ = w / |w|, and the way back for gradients."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# A weight or embedding shorter than this is divided by this instead of its length: one of length 0 has no direction and
# cosine 0 with everything. `tf.math.l2_normalize` has the square of it as the default of its `epsilon`.
SMALLEST_NORM = 1e-6


class Directions(NamedTuple):
    """What class weights are in the softmax."""

    unit: tf.Tensor  # [c, D] w^
    inverse_norms: tf.Tensor  # [c, 1] 1 / |w|

    def through_norm(self, gradients: tf.Tensor) -> tf.Tensor:
        """The gradients `[c, D]` for w, given those for w^: only the part across w^ moves the cosine.

        Of weights shorter than `SMALLEST_NORM` the cosine also depends on the length, which the exact gradient would
        show: there |w^|^2 of the part along w is left out as well, none of it at length 0.
        """
        along = tf.reduce_sum(gradients * self.unit, axis=1, keepdims=True)  # [c, 1]
        return (gradients - along * self.unit) * self.inverse_norms


def directions_of(weights: tf.Tensor) -> Directions:
    """`Directions` of class weights `[c, D]` float32."""
    squares = tf.reduce_sum(tf.square(weights), axis=1, keepdims=True)
    inverse_norms = tf.math.rsqrt(tf.maximum(squares, SMALLEST_NORM**2))  # [c, 1]
    return Directions(weights * inverse_norms, inverse_norms)


def unit_vectors(vectors: tf.Tensor) -> tf.Tensor:
    """Vectors `[c, D]` float32 at length 1, rounded alike wherever one stands in a tensor, else ties would not be.

    Reciprocal square roots are not, which are taken with vectors and a remainder of scalars; square roots and quotients
    are. The maximum keeps TensorFlow from making the former of the latter.
    """
    return vectors / tf.maximum(tf.sqrt(tf.reduce_sum(tf.square(vectors), axis=1, keepdims=True)), SMALLEST_NORM)
