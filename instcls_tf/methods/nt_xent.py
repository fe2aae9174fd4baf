"""NT-Xent, the contrastive loss between the rows of the global batch of all workers.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv:2002.05709), Eq. 1.

Each worker holds its own rows' similarities to all rows, [b, B], and never more. A row's gradient has a part from its
own loss and one from the losses of all rows that it is a positive or a negative of. Similarities are symmetric, so the
worker has those of the second part, too: two numbers per row of the others complete it, and no [B, D] gradients need to
be summed over the workers.
"""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.classifier.output import LossOutput, differentiable
from instcls_tf.distributed import collectives


def nt_xent(embeddings: tf.Tensor, instance_ids: tf.Tensor, temperature: float, name: str) -> LossOutput:
    """The contrastive loss of the global batch of which this worker holds a part; all workers together.

    A pair of two rows i, j of one instance is positive. With s = cos / tau and the rows k of all other instances

      l(i, j) = -log( exp(s_ij) / (exp(s_ij) + sum_k exp(s_ik)) ),

    and the loss is the mean over all positive pairs, both ways round. With two views of each of B / 2 different
    instances that is Eq. 1 and its B - 2 negatives; with more views each pair meets the negatives by itself. Rows of an
    instance that stands in the batch several times are positives of each other, never negatives. A row without any
    positive is a negative only.

    To be called inside a `tf.function` when there are several workers, as all that sends something.

    Args:
      embeddings: `[b, D]` of any float dtype and length; b may differ between workers and be 0.
      instance_ids: `[b]` integers.
      temperature: tau.
      name: of the messages across the workers; of its own for each call within a `tf.function`.

    Returns:
      `LossOutput`; `instance_top1` is the share of rows whose most similar row is one of their own instance.
    """
    normalized = tf.math.l2_normalize(tf.cast(embeddings, tf.float32), axis=1)  # [b, D]
    instance_ids = tf.cast(instance_ids, tf.int32)
    loss, top1, gradient = _loss_and_gradient(tf.stop_gradient(normalized), instance_ids, temperature, name)
    return LossOutput(differentiable(loss, normalized, gradient), top1)


def _loss_and_gradient(
    local_embeddings: tf.Tensor, local_ids: tf.Tensor, temperature: float, name: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    embeddings = collectives.all_gather(local_embeddings, f"{name}_embeddings")  # [B, D]
    ids, is_own = collectives.all_gather_ids(local_ids, f"{name}_ids")  # [B]
    similarities = tf.matmul(local_embeddings, embeddings, transpose_b=True) / temperature  # [b, B]
    is_negative = local_ids[:, tf.newaxis] != ids  # [b, B]
    is_self = tf.where(is_own) == tf.range(tf.size(ids, tf.int64))
    is_positive = ~is_negative & ~is_self

    to_negatives = tf.where(is_negative, similarities, -float("inf"))
    to_positives = tf.where(is_positive, similarities, -float("inf"))
    log_negatives = tf.reduce_logsumexp(to_negatives, axis=1)  # [b] log sum_k exp(s_ik)
    # l(i, j) = softplus(n_i - s_ij); its derivative for n_i, and minus that for s_ij, is the pair's error.
    excess = log_negatives[:, tf.newaxis] - similarities  # [b, B]
    errors = _only(is_positive, tf.sigmoid(excess))
    is_hit = tf.reduce_max(to_positives, axis=1) > tf.reduce_max(to_negatives, axis=1)
    per_row = [
        log_negatives,
        tf.reduce_sum(errors, axis=1),
        tf.reduce_sum(_only(is_positive, tf.nn.softplus(excess)), axis=1),
        tf.reduce_sum(tf.cast(is_positive, tf.float32), axis=1),
        tf.cast(is_hit, tf.float32),
    ]
    all_rows = collectives.all_gather(tf.stack(per_row, axis=1), f"{name}_rows")  # [B, 5]
    all_log_negatives, all_errors, losses, num_positives, hits = tf.unstack(all_rows, axis=1)
    num_pairs = tf.reduce_sum(num_positives)
    loss = tf.math.divide_no_nan(tf.reduce_sum(losses), num_pairs)
    top1 = tf.math.divide_no_nan(tf.reduce_sum(hits), tf.cast(tf.size(ids), tf.float32))

    # dL/ds_ij from the losses of own rows i, and from the losses of all rows j, whose s_ji is s_ij.
    of_own = _only(is_negative, tf.exp(-excess) * per_row[1][:, tf.newaxis]) - errors
    of_others = _only(is_negative, tf.exp(similarities - all_log_negatives) * all_errors)
    of_others -= _only(is_positive, tf.sigmoid(all_log_negatives - similarities))
    gradient = tf.matmul(of_own + of_others, embeddings)  # [b, D]
    return loss, top1, tf.math.divide_no_nan(gradient, temperature * num_pairs)


def _only(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.where(mask, values, 0.0)
