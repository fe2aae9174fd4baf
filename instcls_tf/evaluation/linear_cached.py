"""Linear evaluation on stored features: logistic regression, its learning rate chosen on a part of the train split.

All learning rates are tried at once, as one classifier of L x C outputs. The objective is scikit-learn's: the summed
cross-entropy plus half the squared weights times `l2`, the intercept left free.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import tensorflow as tf

from instcls_tf.distributed import collectives, partition, workers
from instcls_tf.errors import DivergedError, UserError
from instcls_tf.evaluation.accuracy import count_hits, summarize
from instcls_tf.evaluation.features import Features
from instcls_tf.evaluation.linear import Scaling, scaling_of
from instcls_tf.evaluation.recipes import CachedRecipe
from instcls_tf.optimizer import WarmupCosine, momentum_update
from instcls_tf.progress import Progress

# At least so many steps per epoch, however few examples there are.
_STEPS_PER_EPOCH = 20
_ROWS = 8192


def cached_accuracy(
    train: Features, test: Features, num_classes: int, recipe: CachedRecipe, progress: Progress
) -> dict[str, Any]:
    """Trains on `train` and judges the last epoch on `test`; all workers together.

    The learning rate is the one that does best on a held-out part of `train` (of equals the lowest); the classifier
    that is judged is trained with it on the whole of `train`.

    Args:
      train, test: features and labels, the same on all workers.
      num_classes: C.
      recipe: the settings.
      progress: of the training.

    Returns:
      `top1`, `top5`, `mean_per_class`, `examples`, `learning_rate`, and `held_out_top1` by learning rate.

    Raises:
      UserError: too few images to hold some out, or every learning rate diverged.
    """
    scaling = scaling_of(recipe.normalize_features, train.vectors)
    rates = _learning_rates(train.vectors, scaling, recipe)
    kept, held_out = _hold_out(train.labels, recipe.held_out, recipe.seed)
    trial = _fit(train, kept, num_classes, scaling, rates, recipe, "learning rates", progress)
    scores = [_counts(classifier, train, held_out, num_classes, scaling) for classifier in _split(*trial)]
    top1 = [0.0 if counts is None else summarize(counts)["top1"] for counts in scores]
    if max(top1) == 0.0:
        raise UserError("no learning rate of the sweep learns anything: are the labels those of the features?")
    best = rates[int(np.argmax(top1))]
    final = _fit(train, np.arange(len(train.labels)), num_classes, scaling, [best], recipe, "classifier", progress)
    (classifier,) = _split(*final)
    counts = _counts(classifier, test, np.arange(len(test.labels)), num_classes, scaling)
    if counts is None:
        raise DivergedError(f"the training diverged at the chosen learning rate, {best:g}")
    sweep = {f"{rate:.4g}": score for rate, score in zip(rates, top1)}
    return {**summarize(counts), "learning_rate": best, "held_out_top1": sweep}


def _learning_rates(features: np.ndarray, scaling: Scaling, recipe: CachedRecipe) -> list[float]:
    """Ascending. The curvature of the loss grows with the squared length of the features."""
    squares = [
        np.sum(np.square(np.asarray(scaling(features[start : start + _ROWS]))))
        for start in range(0, len(features), _ROWS)
    ]
    mean_square = float(np.sum(squares, dtype=np.float64)) / len(features)
    if not np.isfinite(mean_square) or mean_square == 0:
        raise UserError("the features are all zero, or not finite: there is nothing to learn from")
    return sorted(rate / mean_square for rate in recipe.relative_learning_rates)


def _hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on and to choose by: the same part of each class, at least one if it has two."""
    random = np.random.default_rng(seed)
    parts = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            parts.append(members[: max(1, round(fraction * len(members)))])
    if not parts:
        raise UserError("every class has one labelled image only: none can be held out to choose the learning rate")
    held_out = np.sort(np.concatenate(parts))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def _fit(
    train: Features,
    chosen: np.ndarray,
    num_classes: int,
    scaling: Scaling,
    rates: list[float],
    recipe: CachedRecipe,
    stage: str,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """One classifier per learning rate on the rows `chosen` of `train`: weights `[F, L, C]` and biases `[L, C]`."""
    count, num_features = len(chosen), train.vectors.shape[1]
    batch_size = max(1, min(recipe.batch_size, -(-count // _STEPS_PER_EPOCH)))
    steps_per_epoch = partition.steps_per_epoch(count, batch_size)
    weights, bias = (
        [tf.Variable(tf.zeros([*shape, len(rates), num_classes])) for _ in range(2)] for shape in ([num_features], [])
    )
    step = _make_step(weights, bias, tf.constant(rates, tf.float32)[:, tf.newaxis], recipe, recipe.l2 / count)
    cosine = WarmupCosine(1.0, 0, recipe.epochs * steps_per_epoch)
    number = 0
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(chosen)
        for start in range(0, count, batch_size):
            batch = order[start : start + batch_size]
            low, high = partition.bounds(len(batch), collectives.size(), collectives.rank())
            own = np.sort(batch[low:high])  # a file mapped into memory is read in its order
            rows = scaling(np.asarray(train.vectors[own], np.float32))
            step(rows, train.labels[own], tf.constant(len(batch), tf.float32), cosine(number))
            number += 1
        progress(stage, epoch + 1, recipe.epochs)
    return weights[0].numpy(), bias[0].numpy()


def _make_step(
    weights: list[tf.Variable], bias: list[tf.Variable], rates: tf.Tensor, recipe: CachedRecipe, l2: float
) -> Callable[..., None]:
    """One step of SGD on all L classifiers; each variable comes with its momentum."""
    num_features, num_rates, num_classes = weights[0].shape

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, num_features], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([], tf.float32),
        ],
    )
    def step(rows: tf.Tensor, labels: tf.Tensor, batch_size: tf.Tensor, factor: tf.Tensor) -> None:
        logits = tf.tensordot(rows, weights[0], 1) + bias[0]  # [b, L, C]
        errors = tf.nn.softmax(logits) - tf.one_hot(labels, num_classes)[:, tf.newaxis]
        flat = tf.reshape(errors, [-1, num_rates * num_classes])
        gradient = tf.concat([tf.matmul(rows, flat, transpose_a=True), tf.reduce_sum(flat, 0, keepdims=True)], axis=0)
        gradient = collectives.sum_over_workers(gradient, "cached_gradient") / batch_size
        gradient = tf.reshape(gradient, [-1, num_rates, num_classes])  # [F + 1, L, C]
        for (variable, momentum), part, decay in ((weights, gradient[:-1], l2), (bias, gradient[-1], 0.0)):
            moved = momentum_update(
                variable,
                part,
                momentum,
                learning_rate=factor * rates,
                momentum_factor=recipe.momentum,
                weight_decay=decay,
            )
            variable.assign(moved[0])
            momentum.assign(moved[1])

    return step


def _split(weights: np.ndarray, bias: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(weights[:, rate], bias[rate]) for rate in range(len(bias))]


def _counts(
    classifier: tuple[np.ndarray, np.ndarray], data: Features, chosen: np.ndarray, num_classes: int, scaling: Scaling
) -> np.ndarray | None:
    """`count_hits` over the rows `chosen`, shared out over the workers; None if the classifier is not finite."""
    weights, bias = classifier
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        return None  # the weights are the same on all workers, so they all leave here
    own = chosen[slice(*collectives.own_bounds(len(chosen)))]
    counts = np.zeros([num_classes, 3])
    for start in range(0, len(own), _ROWS):
        part = own[start : start + _ROWS]
        logits = np.asarray(scaling(np.asarray(data.vectors[part], np.float32))) @ weights + bias
        counts += count_hits(logits, data.labels[part], num_classes)
    return workers.total(counts, "cached_counts")
