"""Batches of square images with their boxes. The order and the flips depend on the seed alone, not on the workers."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from instcls_tf.data.decoding import BadImages, decode_image
from instcls_tf.data.threads import parallel_calls, without_autotuner
from instcls_tf.detection.annotations import DetectionSource
from instcls_tf.distributed import partition

_FLIP_TAG = 1


def training_batches(
    source: DetectionSource,
    *,
    image_size: int,
    batch_size: int,
    steps: int,
    seed: int,
    first_step: int = 0,
    rank: int = 0,
    num_workers: int = 1,
) -> tf.data.Dataset:
    """This worker's share of every batch, half of the images mirrored.

    Permutations of all images follow each other without a gap, so that all batches are full. Of a batch that does not
    divide by the workers, the first ones get one image more.

    Args:
      source: the images.
      image_size: side S of the squares that images are squeezed to, pixels.
      batch_size: images per step, all workers together; at least the number of workers.
      steps: of the whole fine-tune.
      seed: of order and flips.
      first_step: where to begin, as if the steps before had been taken.
      rank: this worker.
      num_workers: T.

    Returns:
      A prefetched dataset of `(images, boxes, labels)`: uint8 `[b, S, S, 3]`, float32 `[b, M, 4]` (x0, y0, x1, y1 in
      pixels of the squares) and int32 `[b, M]`. Rows of -1 pad to the most objects of any image, M.
    """
    count = len(source.annotations)
    epochs = -(-steps * batch_size // count)
    orders = [np.random.default_rng([seed, epoch]).permutation(count) for epoch in range(epochs)]
    order = np.concatenate([*orders, np.zeros(0, np.int64)])[: steps * batch_size]
    flips = np.random.default_rng([seed, epochs, _FLIP_TAG]).random(len(order)) < 0.5
    begin, end = partition.bounds(batch_size, num_workers, rank)
    own_order, own_flips = (
        values.reshape(steps, batch_size)[first_step:, begin:end].reshape(-1) for values in (order, flips)
    )
    return _squares(source, own_order, own_flips, image_size).batch(end - begin).prefetch(2)


def inference_batches(
    source: DetectionSource, *, image_size: int, batch_size: int, begin: int, end: int
) -> tf.data.Dataset:
    """Some images of a split, in order, without flips.

    Args:
      source: the split.
      image_size: side S of the squares that images are squeezed to, pixels.
      batch_size: images per step.
      begin: the first image.
      end: the one behind the last.

    Returns:
      A prefetched dataset as of `training_batches`.
    """
    order = np.arange(begin, end)
    return _squares(source, order, np.zeros(len(order), bool), image_size).batch(batch_size).prefetch(2)


def _squares(source: DetectionSource, order: np.ndarray, flips: np.ndarray, size: int) -> tf.data.Dataset:
    load = _loader(source, size)
    elements = tf.data.Dataset.from_tensor_slices((order.astype(np.int64), flips))
    return without_autotuner(elements.map(load, num_parallel_calls=parallel_calls()))


def _loader(source: DetectionSource, size: int) -> Callable:
    read, annotations = source.reader(), source.annotations
    names = tf.constant([os.fsencode(annotation.name) for annotation in annotations])
    shapes = tf.constant([(annotation.height, annotation.width) for annotation in annotations])
    most = max(len(annotation.labels) for annotation in annotations)
    boxes, labels = (tf.constant(values) for values in _padded(source, max(1, most)))

    bad = BadImages()

    def complaint(name: bytes, shape: np.ndarray, said: np.ndarray) -> bytes:
        sentence = _complaint(os.fsdecode(name), tuple(shape), tuple(said), bad)
        return sentence.encode(errors="replace")  # TensorFlow's errors must be text

    def load(index: tf.Tensor, flip: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image = decode_image(read(index), names[index], bad, source.reading)
        shape = tf.shape(image)[:2]
        fits = tf.reduce_all(shape == shapes[index])
        found = [names[index], shape, shapes[index]]
        sentence = tf.cond(fits, lambda: "", lambda: tf.numpy_function(complaint, found, tf.string))
        with tf.control_dependencies([tf.debugging.Assert(fits, [sentence])]):
            image = tf.image.resize(image, [size, size], antialias=True)
        image = tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
        scaled = boxes[index] * float(size)
        is_padding = labels[index] < 0  # [M]
        mirrored = tf.stack([size - scaled[:, 2], scaled[:, 1], size - scaled[:, 0], scaled[:, 3]], axis=1)
        placed = tf.where(is_padding[:, None], -1.0, tf.where(flip, mirrored, scaled))
        return tf.where(flip, image[:, ::-1], image), placed, labels[index]

    return load


def _complaint(name: str, shape: tuple[int, int], said: tuple[int, int], bad: BadImages) -> str:
    """What is wrong with an image of height and width `shape`, of whose annotation `said` is the size."""
    if name in bad.reasons:
        return f"cannot decode the image {name} ({bad.reasons[name]})"
    (height, width), (said_height, said_width) = shape, said
    return f"image {name} has {width} x {height} pixels, but its annotation says {said_width} x {said_height}"


def _padded(source: DetectionSource, most: int) -> tuple[np.ndarray, np.ndarray]:
    """All boxes relative to their images `[N, M, 4]` and labels `[N, M]`, padded with -1."""
    boxes = np.full([len(source.annotations), most, 4], -1, np.float32)
    labels = np.full([len(source.annotations), most], -1, np.int32)
    for row, annotation in enumerate(source.annotations):
        sides = [annotation.width, annotation.height, annotation.width, annotation.height]
        boxes[row, : len(annotation.labels)] = annotation.boxes / np.array(sides, np.float32)
        labels[row, : len(annotation.labels)] = annotation.labels
    return boxes, labels
