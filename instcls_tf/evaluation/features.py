"""Features of a dataset: one pass without augmentation, BN in inference mode."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.data import pipeline
from instcls_tf.data.sources import Source


class Features(NamedTuple):
    """A dataset seen by a network, in the order of instance ids."""

    vectors: np.ndarray  # [N, F] float32
    labels: np.ndarray  # [N] int32, -1 if unknown


def extract(model, source: Source, *, image_size: int, batch_size: int = 256) -> Features:
    """Runs `model` over all images of `source` on this worker.

    Args:
      model: from uint8 images `[b, S, S, 3]` to vectors `[b, F]`; a Keras model is called in inference mode.
      source: the images.
      image_size: S, pixels.
      batch_size: images at a time.
    """
    keras_model = isinstance(model, tf.keras.Model)

    @tf.function(input_signature=[tf.TensorSpec([None, image_size, image_size, 3], tf.uint8)])
    def embed(images):
        return model(images, training=False) if keras_model else model(images)

    vectors, labels = None, np.full([source.num_instances], -1, np.int32)
    for images, ids, batch_labels in pipeline.inference_batches(source, image_size=image_size, batch_size=batch_size):
        batch = tf.cast(embed(images), tf.float32).numpy()
        if vectors is None:
            vectors = np.zeros([source.num_instances, batch.shape[1]], np.float32)
        vectors[ids], labels[ids] = batch, batch_labels
    return Features(vectors, labels)


def pixels(images: tf.Tensor) -> tf.Tensor:
    """The baseline of no network at all: `[b, S, S, 3]` as centred vectors `[b, 3 S S]`."""
    flat = tf.reshape(tf.cast(images, tf.float32), [tf.shape(images)[0], -1])
    return flat - tf.reduce_mean(flat, axis=1, keepdims=True)
