"""Features of a dataset: one pass without augmentation, BN in inference mode, shared out over the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf import stamps
from instcls_tf.data import pipeline
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import MachineError, UserError
from instcls_tf.progress import OnProgress

# Pixels that raw images are compared by; larger ones are averaged down to it, or they would not fit into memory.
PIXEL_SIDE = 32


class Features(NamedTuple):
    """A dataset seen by a network, in the order of instance ids."""

    vectors: np.ndarray  # [N, F] float32
    labels: np.ndarray  # [N] int32, -1 if unknown


class Batch(NamedTuple):
    """One batch of all workers together, the same on each of them."""

    ids: np.ndarray  # [B] int32
    labels: np.ndarray  # [B] int32, -1 if unknown
    outputs: list[np.ndarray]  # [B, F] float32, per output of the model


class Embedder(tf.Module):
    """A model, and what its graph needs to bring together the features of all workers.

    Args:
      model: from uint8 images to a tensor `[b, F]`, or to several; a Keras model is called in inference mode.
    """

    def __init__(self, model: Any):
        super().__init__(name="embedder")
        self._model = (lambda images: model(images, training=False)) if isinstance(model, tf.keras.Model) else model

    # One graph for batches of all sizes, made once.
    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.uint8),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int32),
        ],
    )
    def of_all_workers(
        self, images: tf.Tensor, ids: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Ids `[B]`, labels `[B]` and features `[B, F]` of the global batch, padding left out."""
        real = ids != pipeline.PADDING_ID
        outputs = [tf.cast(output, tf.float32)[real] for output in tf.nest.flatten(self._model(images))]
        gathered = [collectives.all_gather(output, f"features_{i}") for i, output in enumerate(outputs)]
        return collectives.all_gather(ids[real], "ids"), collectives.all_gather(labels[real], "labels"), gathered


def extract(
    model: Any,
    source: Source,
    *,
    image_size: int,
    center_crop_fraction: float = 1.0,
    batch_size: int = 256,
    progress: OnProgress = stamps.stamp,
) -> Features:
    """Runs `model` over all images of `source`; all workers together, each gets the whole.

    Args:
      model: from uint8 images `[b, S, S, 3]` to vectors `[b, F]`; a Keras model is called in inference mode. To use one
        several times, wrap it into an `Embedder`, which keeps its graph.
      source: the images.
      image_size: S, pixels.
      center_crop_fraction: what is seen of an image, see `pipeline.inference_batches`.
      batch_size: images at a time, all workers together.
      progress: see `stream`.

    Returns:
      Vectors and labels of the images that can be read.
    """
    vectors, labels = np.zeros([source.num_instances, 0], np.float32), np.full([source.num_instances], -1, np.int32)
    seen = np.zeros([source.num_instances], bool)
    for batch in stream(
        model,
        source,
        image_size=image_size,
        center_crop_fraction=center_crop_fraction,
        batch_size=batch_size,
        progress=progress,
    ):
        (rows,) = batch.outputs
        if vectors.shape[1] != rows.shape[1]:  # at the first batch, which tells F
            vectors = np.zeros([source.num_instances, rows.shape[1]], np.float32)
        vectors[batch.ids], labels[batch.ids], seen[batch.ids] = rows, batch.labels, True
    return Features(vectors, labels) if seen.all() else Features(vectors[seen], labels[seen])


def stream(
    model: Any,
    source: Source,
    *,
    image_size: int,
    center_crop_fraction: float = 1.0,
    batch_size: int = 256,
    progress: OnProgress = stamps.stamp,
) -> Iterator[Batch]:
    """The batches of `extract`, for a model of one output or of several.

    Args:
      model, source, image_size, center_crop_fraction, batch_size: see `extract`.
      progress: called with a stage's name, batches done and batches in all.
    """
    embed = model if isinstance(model, Embedder) else Embedder(model)
    batches = pipeline.inference_batches(
        source,
        image_size=image_size,
        center_crop_fraction=center_crop_fraction,
        batch_size=batch_size,
        rank=collectives.rank(),
        num_workers=collectives.size(),
    )
    for done, (images, own_ids, own_labels) in enumerate(batches, start=1):
        ids, labels, outputs = embed.of_all_workers(images, own_ids, own_labels)
        yield Batch(ids.numpy(), labels.numpy(), [output.numpy() for output in outputs])
        progress(f"features of {source.name}", done, len(batches))
    refuse_damage(source)


def refuse_damage(source: Source) -> None:
    """Ends an evaluation that has met record files which hold less than they should; all workers together.

    Raises:
      UserError: names the file; on all workers alike, whichever of them has read it.
      MachineError: likewise, as the file system fails.
    """
    for _, sentence in sorted(workers.merged(source.bad.damage).items()):
        is_of_machine = any(workers.everybodys(source.bad.is_of_machine))
        raise (MachineError if is_of_machine else UserError)(f"--dataset={source.name}: {sentence}")


def pixels(images: tf.Tensor) -> tf.Tensor:
    """The baseline of no network at all: `[b, S, S, 3]` as centred vectors `[b, 3 S S]`."""
    flat = tf.reshape(tf.cast(images, tf.float32), [tf.shape(images)[0], -1])
    return flat - tf.reduce_mean(flat, axis=1, keepdims=True)


def pixels_of(image_size: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """`pixels` of images `[b, S, S, 3]` that are averaged down to at most `PIXEL_SIDE` before.

    Args:
      image_size: S.
    """
    side = min(PIXEL_SIDE, image_size)
    return lambda images: pixels(
        images if side == image_size else tf.image.resize(images, [side, side], tf.image.ResizeMethod.AREA)
    )
