"""The streamed softmax: Eq. 1 and Eq. 3 from sums over classes, and what the passes that make them share.

Logits l_ij = cos(w_j, x_i) / tau exist for one tile of classes at a time. Two passes make a training step:

  forward pass   per row: S = sum_j exp(l_ij), G = sum_j exp(l_ij) w^_j and the sparse target terms. They are sums over
                 classes, so summing them over the workers completes them, and they hold all that the loss and its
                 gradient for the embeddings need: no logits are kept.
  backward pass  recomputes a tile's logits, turns them into probabilities minus targets, and moves the tile's class
                 weights by the gradient at once.

`PortablePasses` makes them of TensorFlow's operations, `CompiledPasses` by the kernels for CPUs.

Legend of the shape comments:
  N, n  classes: all of them; the ones this worker streams      B  rows of the global batch (all workers, all views)
  D     embedding size                                          K  hard negatives per class
  E     non-zero labels that fall on this worker's classes      c  classes of one tile
  x^, w^  L2-normalised embeddings and class weights            i, j  a row of the batch; a class

Every loss is a mean over the B rows of the global batch: dividing by B happens here, once.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, NamedTuple, Protocol

import tensorflow as tf

from instcls_tf.classifier.labels import Targets
from instcls_tf.classifier.local_classes import LocalClasses, Sgd
from instcls_tf.classifier.shift import needs_shift
from instcls_tf.config import MARGINAL


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Which softmax is computed."""

    temperature: float  # tau
    smoothing_loss: str  # `marginal` (Eq. 3 as printed) or `cross_entropy`
    products_dtype: tf.DType = tf.float32  # or bfloat16: of the factors of matrix products

    @property
    def needs_shift(self) -> bool:
        """Whether exp of a logit can leave the range of float32."""
        return needs_shift(self.temperature)


class Shift(NamedTuple):
    """What is subtracted from logits before exp at small temperatures, to keep float32 in range."""

    logits: tf.Tensor  # [B]
    targets: tf.Tensor  # [B], for the sum over targets, whose logits may lie far below the row's maximum


class Batch(NamedTuple):
    """The global batch as every worker sees it, and its labels on this worker's classes."""

    embeddings: tf.Tensor  # [B, D] float32, L2-normalised
    targets: Targets
    streamed: tf.Tensor | None = None  # [n] int32, the local classes that take part, ascending; None for all of them
    unsampled: Targets | None = None  # the labels on other local classes, which are their `column`; see own_classes.py
    shift: Shift | None = None  # complete over all workers; None where the temperature needs none


class PartialSums(NamedTuple):
    """One worker's terms of the forward pass; all but the maximum are summed over the workers."""

    exp_sum: tf.Tensor  # [B] S: sum_j exp(l_ij - shift)
    target_sum: tf.Tensor  # [B] sum_j y_ij exp(l_ij - shift), or sum_j y_ij l_ij for the cross-entropy
    own_logit: tf.Tensor  # [B] l_ii where this worker owns class i, else 0
    max_negative: tf.Tensor  # [B] max_{j != i} l_ij
    exp_weights: tf.Tensor  # [B, D] G: sum_j exp(l_ij - shift) w^_j
    target_weights: tf.Tensor  # [B, D] sum_j y_ij exp(l_ij - shift) w^_j, or sum_j y_ij w^_j


class Totals(NamedTuple):
    """The sums of `PartialSums` that are complete over all workers."""

    exp_sum: tf.Tensor  # [B]
    target_sum: tf.Tensor  # [B]


class Passes(Protocol):
    """The two passes over a worker's classes, by whatever computes them."""

    def local_maxima(self, batch: Batch) -> Shift | None:
        """This worker's part of the shift, or None if none is needed; the maximum over the workers completes it."""

    def forward(self, batch: Batch) -> PartialSums:
        """Streams this worker's classes once (steps 3 and 4)."""

    def backward(self, batch: Batch, totals: Totals, sgd: Sgd) -> None:
        """Streams the classes again and moves their weights and momentum (steps 6 and 8)."""


MakePasses = Callable[[LocalClasses, Softmax], Passes]


def loss_per_row(totals: Totals, shift: Shift | None, smoothing_loss: str) -> tf.Tensor:
    """Step 5: the loss of each row, Eq. 1 and Eq. 3.

    Args:
      totals: of all workers.
      shift: see `Shift`.
      smoothing_loss: `marginal` or `cross_entropy`.

    Returns:
      `[B]`.
    """
    log_denominator = tf.math.log(totals.exp_sum) + (0.0 if shift is None else shift.logits)
    if smoothing_loss == MARGINAL:
        return log_denominator - tf.math.log(totals.target_sum) - (0.0 if shift is None else shift.targets)
    return log_denominator - totals.target_sum


def embedding_gradient(local: PartialSums, totals: Totals, softmax: Softmax) -> tf.Tensor:
    """Step 6: this worker's part of the mean loss' gradient for the normalised embeddings.

    `dx^_i = (sum_j p_ij w^_j - sum_j q_ij w^_j) / (tau B)`, where q is the labels' share `y p / sum y p` for Eq. 3 and
    y itself for the cross-entropy.

    Args:
      local: this worker's partial sums.
      totals: of all workers.
      softmax: which one.

    Returns:
      `[B, D]`; the sum over the workers is the gradient.
    """
    batch_rows = tf.cast(tf.shape(totals.exp_sum)[0], tf.float32)
    expected = local.exp_weights / totals.exp_sum[:, tf.newaxis]
    target = local.target_weights
    if softmax.smoothing_loss == MARGINAL:
        target /= totals.target_sum[:, tf.newaxis]
    return (expected - target) / (softmax.temperature * batch_rows)


def target_terms(
    logits: tf.Tensor, targets: Targets, shift: Shift | None, smoothing_loss: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """What labels add to the sums of their rows.

    Args:
      logits: `[e]` of the labels' rows and classes.
      targets: the labels.
      shift: see `Shift`.
      smoothing_loss: `marginal` or `cross_entropy`.

    Returns:
      `[e]` terms of the target sum, and `[e]` factors of w^ in its gradient before any division.
    """
    if smoothing_loss == MARGINAL:
        if shift is not None:
            logits = logits - tf.gather(shift.targets, targets.row)
        terms = targets.label * tf.exp(logits)
        return terms, terms
    return targets.label * logits, targets.label


def target_shares(factors: tf.Tensor, targets: Targets, totals: Totals, smoothing_loss: str) -> tf.Tensor:
    """The labels' shares q_ij in the gradient, see `embedding_gradient`.

    Args:
      factors: `[e]` of `target_terms`.
      targets: the labels.
      totals: of all workers.
      smoothing_loss: `marginal` or `cross_entropy`.

    Returns:
      `[e]`.
    """
    return factors / tf.gather(totals.target_sum, targets.row) if smoothing_loss == MARGINAL else factors
