"""Classification accuracy over a split, counted by class and shared out over the workers."""

from __future__ import annotations

from typing import Callable

import numpy as np
import tensorflow as tf

from instcls_tf.data import pipeline
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import DivergedError, UserError
from instcls_tf.evaluation import features

_BATCH_SIZE = 256  # images at a time, all workers together


def count_hits(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How often the label is the class of the highest logit, and among the first five; ties go to the lower class.

    Args:
      logits: `[b, C]`.
      labels: `[b]` integers in [0, C).
      num_classes: C.

    Returns:
      `[C, 3]` counts per class of the labels: examples, first, among the first five.

    Raises:
      UserError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise DivergedError("the classifier's training diverged (its answers are not finite): lower the learning rate")
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    hits = ranked == np.asarray(labels)[:, np.newaxis]
    counts = np.zeros([num_classes, 3])
    for column, values in enumerate((np.ones(len(labels)), hits[:, 0], hits.any(axis=1))):
        np.add.at(counts[:, column], labels, values)
    return counts


def summarize(counts: np.ndarray) -> dict[str, float]:
    """`top1`, `top5` and `mean_per_class` as fractions, and `examples`, from counts `[C, 3]` of all workers.

    `mean_per_class` is the mean over the classes that have examples of the accuracy within the class.
    """
    examples, top1, top5 = counts.sum(axis=0)
    present = counts[:, 0] > 0
    return {
        "top1": float(top1 / examples),
        "top5": float(top5 / examples),
        "mean_per_class": float((counts[present, 1] / counts[present, 0]).mean()),
        "examples": int(examples),
    }


def accuracy_of(
    predict: Callable[[tf.Tensor], tf.Tensor],
    source: Source,
    *,
    image_size: int,
    num_classes: int,
    center_crop_fraction: float = 1.0,
) -> dict[str, float]:
    """Accuracy on un-augmented images (a centred square, resized); all workers together.

    Args:
      predict: from uint8 images `[b, S, S, 3]` to logits `[b, C]`.
      source: labelled images.
      image_size: S, pixels.
      num_classes: C.
      center_crop_fraction: what is seen of an image, see `pipeline.inference_batches`.

    Returns:
      See `summarize`. Images that cannot be read are left out.

    Raises:
      UserError: an image has no label, none can be read, or a logit is not finite.
    """
    counts = np.zeros([num_classes, 3])
    batches = pipeline.inference_batches(
        source,
        image_size=image_size,
        center_crop_fraction=center_crop_fraction,
        batch_size=_BATCH_SIZE,
        rank=collectives.rank(),
        num_workers=collectives.size(),
    )
    for images, ids, labels in batches:
        real = ids.numpy() != pipeline.PADDING_ID
        if np.any(labels.numpy()[real] < 0):
            raise UserError(f"--dataset={source.name}: an image of the test split has no label")
        counts += count_hits(predict(images).numpy()[real], labels.numpy()[real], num_classes)
    features.refuse_damage(source)
    counts = workers.total(counts, "accuracy")
    if not counts.any():
        raise UserError(f"--dataset={source.name}: no image of the test split can be read")
    return summarize(counts)
