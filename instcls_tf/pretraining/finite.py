"""Whether the numbers of a step are finite: seen in the graph before anything moves, told in one sentence.

Nothing is sent for it. The loss is the same on all workers, and so are the gradients once they are summed: their norm
tells each worker what all of them are told. A ReLU may hide a spoilt gradient of an embedding from the encoder's
gradients, so it is mixed into one of them before the sum. Only when a step is not taken do the workers ask each other
whose numbers were at fault.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.config import FLOAT32, PretrainConfig
from instcls_tf.distributed import workers
from instcls_tf.errors import DivergedError, some_of
from instcls_tf.run.checkpoint_choice import last_good
from instcls_tf.run.workdir import has_checkpoints

_MOST_NAMES = 5


class Health(NamedTuple):
    """What a step's numbers are like; the first two are the same on all workers."""

    stops: tf.Tensor  # scalar bool: not finite: nothing has moved, and the run is to end
    skipped: tf.Tensor  # scalar bool: a gradient overflowed under loss scaling: only the scale moved; the step counts
    own_gradient_is_finite: tf.Tensor  # scalar bool: this worker's part of the encoder's gradient
    loss: tf.Tensor  # scalar float32, the same on all workers
    spoilt_embeddings: tf.Tensor  # [b] bool: the instances of this worker of which an embedding is not finite
    spoilt_gradients: tf.Tensor  # [b] bool: the same of an embedding's gradient


def unchecked(loss: tf.Tensor) -> Health:
    """Of a step at whose numbers nobody has looked."""
    none = tf.zeros([0], tf.bool)
    return Health(tf.constant(False), tf.constant(False), tf.constant(True), loss, none, none)


def mixed_in(gradient: tf.Tensor, embedding_gradient: tf.Tensor) -> tf.Tensor:
    """A gradient of the encoder, unchanged, or not finite if the embeddings' gradient is not."""
    return gradient + tf.cast(0.0 * tf.reduce_sum(embedding_gradient), gradient.dtype)


def is_finite(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Whether a norm of the tensors is finite: scalar bool, in one pass over them."""
    return tf.math.is_finite(tf.linalg.global_norm([tf.cast(tensor, tf.float32) for tensor in tensors]))


def spoilt(values: tf.Tensor, views: int) -> tf.Tensor:
    """The instances `[b]` bool whose rows in `[b V, D]` are not all finite."""
    rows = tf.reduce_all(tf.math.is_finite(values), axis=1)  # [b V]
    return ~tf.reduce_all(tf.reshape(rows, [-1, views]), axis=1)


def take(
    loss: tf.Tensor,
    own_gradients: list[tf.Tensor],
    gradients: list[tf.Tensor],
    loss_scale: tf.Tensor | None,
    apply: Callable[[], object],
    move: Callable[[], object],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Takes a step if its numbers are finite: moves the encoder and then all else that a step moves, or nothing.

    Args:
      loss: scalar, the same on all workers.
      own_gradients: of the encoder, this worker's part.
      gradients: their sum over the workers.
      loss_scale: of float16; above 1 an overflow lowers it, and the run goes on. None without.
      apply: the optimiser's update; with loss scaling it leaves the encoder alone and lowers the scale itself.
      move: what moves the rest, BN's statistics and the method's own weights, from the encoder's new ones.

    Returns:
      `stops`, `skipped` and `own_gradient_is_finite` of `Health`.
    """
    loss_is_finite, gradient_is_finite = tf.math.is_finite(loss), is_finite(gradients)
    may_skip = tf.constant(False) if loss_scale is None else loss_scale > 1.0
    skipped = loss_is_finite & ~gradient_is_finite & may_skip
    taken = loss_is_finite & gradient_is_finite
    # Looked at only where it matters: another pass over the gradients.
    own_is_finite = tf.cond(gradient_is_finite, lambda: tf.constant(True), lambda: is_finite(own_gradients))

    def call(action: Callable[[], object]) -> Callable[[], tf.Tensor]:
        def branch() -> tf.Tensor:
            action()
            return tf.constant(True)

        return branch

    applied = tf.cond(taken | skipped, call(apply), lambda: tf.constant(False))
    with tf.control_dependencies([applied]):
        tf.cond(taken, call(move), lambda: tf.constant(False))
    return ~(taken | skipped), skipped, own_is_finite


def refuse(
    health: Health, step: int, instance_ids: tf.Tensor, config: PretrainConfig, name_of: Callable[[int], str | int]
) -> None:
    """Ends the run if a step's numbers were not finite; all workers together, each after the same step.

    Args:
      health: of the step.
      step: its number, counted from 0.
      instance_ids: `[b]` of this worker, -1 for padding.
      config: the recipe.
      name_of: an image's name by its id.

    Raises:
      DivergedError: one sentence with the step, whose numbers they were, and what to do.
    """
    if not health.stops:
        return
    ids = instance_ids.numpy()
    mine = {
        "embeddings": ids[health.spoilt_embeddings.numpy() & (ids >= 0)].tolist(),
        "gradients": ids[health.spoilt_gradients.numpy() & (ids >= 0)].tolist(),
        "rest": [] if health.own_gradient_is_finite else ids[ids >= 0].tolist(),
    }
    what = _found(workers.everybodys(mine), float(health.loss), name_of)
    half = "" if config.precision == FLOAT32 else f", or --precision=float32 instead of {config.precision}"
    # Its workdir refuses all of these once it has saved.
    where = f": in another folder, with --init={config.workdir} to begin from that checkpoint"
    raise DivergedError(
        f"step {step + 1}: {what}, and the step was not taken on any worker ({last_good(config.workdir)}); if the run"
        f" diverged, it needs a lower --learning_rate than {config.learning_rate:g} or a longer warm-up{half}"
        + (where if has_checkpoints(config.workdir) else "")
    )


def _found(found: list[dict[str, list[int]]], loss: float, name_of: Callable[[int], str | int]) -> str:
    for kind, what in (
        ("embeddings", "embeddings of {} are not finite"),
        ("gradients", "the loss's gradient for embeddings of {} is not finite"),
        ("rest", "the encoder's gradient is not finite, from the share of {}"),
    ):
        of_workers = [
            f"worker {rank} (instances {_named(ids[kind], name_of)})" for rank, ids in enumerate(found) if ids[kind]
        ]
        if of_workers and (kind == "embeddings" or np.isfinite(loss)):
            return what.format(some_of(of_workers, 3))
    return f"the loss is {loss}" if not np.isfinite(loss) else "the encoder's gradient is not finite"


def _named(ids: list[int], name_of: Callable[[int], str | int]) -> str:
    names = (f"{i}" if name_of(i) == i else f"{i}: {name_of(i)!r}" for i in ids)
    return some_of(names, _MOST_NAMES)
