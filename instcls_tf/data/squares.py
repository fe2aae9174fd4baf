"""Whole images by their ids, each made a square: to compare them pixel by pixel, and to show them small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.data.resizing import resize_to_square
from instcls_tf.data.source import Source
from instcls_tf.data.threads import parallel_calls, without_autotuner


class Square(NamedTuple):
    """An image, all of it: the shape of what is not square is lost."""

    instance_id: int
    pixels: np.ndarray  # [S, S, 3] uint8
    height: int  # of the image itself, in pixels
    width: int


def squares_of(source: Source, ids: np.ndarray, side: int) -> Iterator[Square]:
    """Reads some images; those that cannot be read are left out, and are in the source's `bad`.

    Args:
      source: the images.
      ids: `[n]` instance ids, ascending.
      side: S, pixels.
    """
    if not len(ids):
        return
    for instance_id, pixels, (height, width) in _dataset(source, np.asarray(ids), side).as_numpy_iterator():
        if height:
            yield Square(int(instance_id), pixels, int(height), int(width))


@tf.autograph.experimental.do_not_convert
def _dataset(source: Source, ids: np.ndarray, side: int) -> tf.data.Dataset:
    load = source.loader()
    if source.random_access:
        elements = tf.data.Dataset.from_tensor_slices(ids.astype(np.int64)).map(lambda place: (place, place))
    else:
        is_wanted = np.zeros([source.num_instances], bool)
        is_wanted[ids] = True
        records = source.records(int(ids[0]), int(ids[-1]) + 1, in_order=True)
        elements = records.map(lambda record, place, label: (record, place))
        elements = elements.filter(lambda record, place: tf.constant(is_wanted)[place])

    def square(key: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image = tf.ensure_shape(load(key), [None, None, 3])

        def resized() -> tf.Tensor:
            return tf.cast(tf.round(resize_to_square(image[None], side)[0]), tf.uint8)

        pixels = tf.cond(tf.size(image) > 0, resized, lambda: tf.zeros([side, side, 3], tf.uint8))
        return place, pixels, tf.shape(image)[:2]

    return without_autotuner(elements.map(square, num_parallel_calls=parallel_calls()).prefetch(8))
