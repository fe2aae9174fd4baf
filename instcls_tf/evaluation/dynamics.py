"""What moves during a run: class weights, embeddings, and what the classification's gradient for these is made of.

Read from the checkpoints that are there, one of each epoch where a run kept them (`--keep_checkpoints`). The
mathematics is NumPy's in float64: rows are few, and nothing is trained.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.checks import require, require_value
from instcls_tf.classifier.directions import SMALLEST_NORM
from instcls_tf.config import DIET, INSTANCE, MARGINAL, PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.source import Source, notes_of
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed import partition, workers
from instcls_tf.errors import UserError
from instcls_tf.evaluation import weight_index
from instcls_tf.run import checkpoint_choice
from instcls_tf.run.checkpoint_manifest import Origin
from instcls_tf.run.encoder import encoder_of
from instcls_tf.run.metrics import read_metrics
from instcls_tf.run.workdir import load_run, run_id

# Of views to classes that are in memory at a time, float64.
_MOST_COSINES = 2**24


class Rows(NamedTuple):
    """Embedded views: V of each of M instances."""

    embeddings: np.ndarray  # [M, V, D] float64, L2-normalised
    ids: np.ndarray  # [M]


def dynamics_of_run(workdir: str, data_dir: str | None, instances: int) -> list[dict[str, float]]:
    """What can be said of each checkpoint of a run, the oldest first.

    Args:
      workdir: the run's folder.
      data_dir: TFDS's folder; None for the run's own.
      instances: about how many are looked at, those of the first epoch's first batches, in the same views each time.

    Returns:
      For each checkpoint `step` and `epoch`, and of its embeddings `alignment` and `uniformity` (see there). With class
      weights also:
      `norm`, mean length of a class weight; `turn`, mean angle in degrees between a class weight now and at the
      checkpoint before (not of the first); `visit_turn`, what one visit of its image with its V views makes of that,
      momentum included, estimated from the gradient now and the learning rate last logged;
      `own_cosine` and `hard_cosine`, of a view to its own class weight and to the hard negatives of its class now;
      `own_share`, `hard_share` and `rest_share`, see `gradient_shares`; `instance_top1`. With `--sampled_classes` no
      shares and no `visit_turn`.

    Raises:
      UserError: no run, one of DIET, no checkpoint, or a damaged one.
    """
    require_value("instances", instances, instances >= 2, "at least 2")
    config = load_run(workdir)
    require(config, "method", config.method != DIET, f"another than {DIET}, which leaves the projection untrained")
    own = Origin(run_id=run_id(workdir))
    prefixes = [
        prefix
        for prefix in checkpoint_choice.prefixes(workdir)
        if not checkpoint_choice.problem_of(prefix, False) and not checkpoint_choice.of_another_run(prefix, own)
    ]
    if not prefixes:
        raise UserError(f"--workdir={workdir}: has no whole checkpoint")
    source = open_training_source(config, data_dir, workdir)
    if config.method == INSTANCE:
        weight_index.refuse_other_number(prefixes[-1], source)
    progress = workers.start(config.seed, notes_of(source))
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(workdir) if "learning_rate" in line}
    steps = partition.steps_per_epoch(source.num_instances, config.batch_size, config.window(source.num_instances))
    found, before = [], None
    for done, prefix in enumerate(prefixes, start=1):
        step = checkpoint_choice.step_of(prefix)
        rows = embedded_views(config, source, encoder_of(config, prefix), instances)
        line: dict[str, float] = {"step": step, "epoch": step / steps, **alignment_and_uniformity(rows)}
        weights = _class_weights(config, prefix, source)
        if weights is not None:
            rate = rates[max((logged for logged in rates if logged <= step), default=min(rates))] if rates else 0.0
            line |= of_class_weights(config, weights, before, rows, rate)
        before = weights
        found.append(line)
        progress("dynamics", done, len(prefixes))
    progress.close()
    return found


def _class_weights(config: PretrainConfig, prefix: str, source: Source) -> np.ndarray | None:
    """`[N, D]`; None where there are none yet, or none of a cosine softmax."""
    if config.method != INSTANCE:
        return None
    weights = weight_index.read_weights(prefix, 0, source.num_instances).numpy().astype(np.float64)
    return weights if weights.any() else None


def hardest(directions: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    """The hard negatives of some classes.

    Args:
      directions: `[N, D]`, L2-normalised class weights.
      ids: `[M]` classes.
      k: K; all others where there are not as many.

    Returns:
      `[M, K]` classes, in no order.
    """
    cosines = directions[ids] @ directions.T
    cosines[np.arange(len(ids)), ids] = -np.inf
    k = min(k, len(directions) - 1)
    return np.argpartition(-cosines, k - 1, axis=1)[:, :k]


def embedded_views(config: PretrainConfig, source: Source, encoder: tf.keras.Model, instances: int) -> Rows:
    """Views as training makes and embeds them: BN normalises each group of `micro_batch` instances by itself.

    Args:
      config: the run's recipe.
      source: the images.
      encoder: from images to `[b, D]`.
      instances: about how many, those of the first epoch's first batches.
    """
    group = min(config.micro_batch, config.batch_size, source.num_instances)
    steps = -(-min(instances, source.num_instances) // group)
    batches = pipeline.training_batches_of(config, source, last_step=steps, batch_size=group, micro_batch=group)
    embeddings, ids = [], []
    for views, of_views in batches:
        rows = encoder(tf.reshape(views, [-1, *views.shape[2:]]), training=True).numpy().astype(np.float64)
        real = of_views.numpy() != pipeline.PADDING_ID
        embeddings.append(_unit(rows).reshape([len(real), config.views, -1])[real])
        ids.append(of_views.numpy()[real])
    return Rows(np.concatenate(embeddings), np.concatenate(ids))


def alignment_and_uniformity(rows: Rows) -> dict[str, float]:
    """Wang and Isola, "Understanding Contrastive Representation Learning …" (2020); lower is better of both.

    Returns:
      `alignment`, the mean squared distance of two views of an instance (not with one view), and `uniformity`, the
      logarithm of the mean of exp(-2 |x - y|^2) over the views of different instances.
    """
    count, views, size = rows.embeddings.shape
    result = {}
    if views > 1:
        # Over all pairs: 2 V (V - cosines summed over both) / (V (V - 1)).
        sums = np.square(rows.embeddings.sum(axis=1)).sum(axis=1)
        result["alignment"] = float(np.mean(2 * (views * views - sums) / (views * (views - 1))))
    flat = rows.embeddings.reshape([-1, size])
    kernel = np.exp(-4 * (1 - flat @ flat.T))  # |x - y|^2 = 2 - 2 cos
    other = ~np.kron(np.eye(count, dtype=bool), np.ones([views, views], bool))
    return {**result, "uniformity": float(np.log(kernel[other].mean()))}


def of_class_weights(
    config: PretrainConfig,
    weights: np.ndarray,
    before: np.ndarray | None,
    rows: Rows,
    learning_rate: float,
) -> dict[str, float]:
    """What class weights do, and what they do to embeddings; the keys are those of `dynamics_of_run`.

    Args:
      config: the run's recipe.
      weights: `[N, D]`.
      before: `[N, D]` at the checkpoint before, or None.
      rows: embedded views.
      learning_rate: of the encoder, now.
    """
    directions, norms = _unit(weights), np.linalg.norm(weights, axis=1)
    result = {"norm": float(norms.mean())}
    if before is not None:
        result["turn"] = float(_degrees(np.sum(directions * _unit(before), axis=1)).mean())
    # Some instances at a time: there is a number for each of their views and each class.
    size = max(1, _MOST_COSINES // (len(weights) * rows.embeddings.shape[1]))
    parts = [
        (len(rows.ids[begin : begin + size]), _of_rows(config, directions, norms, Rows(*part), learning_rate))
        for begin in range(0, len(rows.ids), size)
        for part in [(rows.embeddings[begin : begin + size], rows.ids[begin : begin + size])]
    ]
    return result | {name: sum(count * part[name] for count, part in parts) / len(rows.ids) for name in parts[0][1]}


def _of_rows(
    config: PretrainConfig, directions: np.ndarray, norms: np.ndarray, rows: Rows, learning_rate: float
) -> dict[str, float]:
    """Means over some instances."""
    views = rows.embeddings.shape[1]
    embeddings = rows.embeddings.reshape([-1, rows.embeddings.shape[2]])  # [R, D]
    own = np.repeat(rows.ids, views)
    hard = None
    if config.smoothing:
        hard = np.repeat(hardest(directions, rows.ids, config.hard_negatives), views, axis=0)
    cosines = embeddings @ directions.T  # [R, N]
    own_cosines = cosines[np.arange(len(own)), own]
    result = {"own_cosine": float(own_cosines.mean())}
    if hard is not None:
        result["hard_cosine"] = float(np.take_along_axis(cosines, hard, axis=1).mean())
    result["instance_top1"] = float(np.mean(np.argmax(cosines, axis=1) == own))
    if config.sampled_classes:
        return result  # the gradient is that of each step's sample
    coefficients = loss_coefficients(config, cosines, own, hard)
    result |= gradient_shares(embeddings, directions, coefficients, own, hard)
    # The gradient for w of its own rows: for its direction, across it, over its length; a mean over B rows.
    instances = min(config.batch_size, len(directions))
    pull = coefficients[np.arange(len(own)), own] / (config.temperature * instances * views)
    pulls = pull[:, None] * (embeddings - own_cosines[:, None] * directions[own])
    pulls = pulls.reshape([-1, views, directions.shape[1]]).sum(axis=1)
    rate = learning_rate * config.classifier_learning_rate_factor / (1 - config.effective_class_momentum)
    moves = rate * np.linalg.norm(pulls, axis=1) / np.square(np.maximum(norms[rows.ids], SMALLEST_NORM))
    return {**result, "visit_turn": float(np.degrees(np.arctan(moves)).mean())}


def loss_coefficients(
    config: PretrainConfig, cosines: np.ndarray, own: np.ndarray, hard: np.ndarray | None
) -> np.ndarray:
    """`[R, N]` p - q: what multiplies the classes' directions in the gradient of an embedding (Eq. 3, times tau).

    Args:
      config: gives tau, alpha and the loss.
      cosines: `[R, N]`.
      own: `[R]` own classes.
      hard: `[R, K]` hard negatives, or None.
    """
    logits = cosines / config.temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    row = np.arange(len(own))
    y = np.zeros_like(p)
    alpha = 0.0 if hard is None else config.smoothing
    if hard is not None:
        y[row[:, None], hard] = alpha / hard.shape[1]
    y[row, own] = 1 - alpha
    if config.smoothing_loss == MARGINAL:
        y *= p
        y /= y.sum(axis=1, keepdims=True)
    return p - y


def gradient_shares(
    embeddings: np.ndarray,
    directions: np.ndarray,
    coefficients: np.ndarray,
    own: np.ndarray,
    hard: np.ndarray | None,
) -> dict[str, float]:
    """Which classes the classification's gradient for an embedding comes from.

    Each part is a sum of directions times coefficients, of which only what lies across the embedding moves it; its
    share is its length over that of the three together, in the mean of the rows.

    Args:
      embeddings: `[R, D]`, L2-normalised.
      directions: `[N, D]`, L2-normalised class weights.
      coefficients: `[R, N]` p - q.
      own: `[R]` own classes.
      hard: `[R, K]` hard negatives, or None.

    Returns:
      `own_share`, `hard_share` (not without lists) and `rest_share`.
    """
    row = np.arange(len(own))
    parts = {"own_share": coefficients[row, own][:, None] * directions[own]}
    if hard is not None:
        parts["hard_share"] = np.einsum("rk,rkd->rd", np.take_along_axis(coefficients, hard, axis=1), directions[hard])
    parts["rest_share"] = coefficients @ directions - sum(parts.values())
    across = {
        name: np.linalg.norm(part - np.sum(part * embeddings, axis=1, keepdims=True) * embeddings, axis=1)
        for name, part in parts.items()
    }
    whole = np.maximum(sum(across.values()), np.finfo(np.float64).tiny)
    return {name: float(np.mean(lengths / whole)) for name, lengths in across.items()}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), SMALLEST_NORM)


def _degrees(cosines: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip(cosines, -1, 1)) * 180 / math.pi
