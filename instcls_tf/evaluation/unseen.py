"""BN statistics for a network that has seen no image yet, so that it is judged as one that has.

The contrastive prior leaves the statistics of its passes behind; other methods, Gaussian class weights and
`raw_fixed_bn` train from 0 and 1, which are no statistics of any image.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.sample import sample
from instcls_tf.data.source import Source
from instcls_tf.encoder import networks

# Images whose statistics are taken, and those that are encoded at a time.
IMAGES, _GROUP = 1024, 64


def has_seen_nothing(encoder: tf.keras.Model) -> bool:
    """Whether all moving means are 0 and all variances 1, as they are drawn."""
    layers = networks.batch_norm_layers(encoder)
    return all(not np.any(layer.moving_mean) and np.all(layer.moving_variance == 1.0) for layer in layers)


def fill_statistics(encoder: tf.keras.Model, config: PretrainConfig, source: Source) -> None:
    """Gives a network that has seen nothing the mean statistics of groups of images; another stays as it is.

    Every worker does it by itself, with the same images.

    Args:
      encoder: from images to `[b, D]`.
      config: the recipe, for the size of images and its seed.
      source: the images, of which `IMAGES` are taken, without augmentation.
    """
    if not has_seen_nothing(encoder):
        return
    few = sample(source, IMAGES)
    group = min(_GROUP, few.num_instances)
    batches = pipeline.inference_batches(
        few, image_size=config.image_size, batch_size=group, micro_batch=group, shuffle_seed=config.seed
    )
    layers, done = networks.batch_norm_layers(encoder), 0
    momenta = [layer.momentum for layer in layers]
    for images, ids, _ in batches:
        real = images[ids >= 0]
        if len(real) < 2:  # no variance
            continue
        for layer in layers:
            layer.momentum = done / (done + 1)  # so that the moving statistics are the mean of all groups
        encoder(real, training=True)
        done += 1
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
