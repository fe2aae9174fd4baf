"""The contrastive prior: class weights from the features of a random network with running BN.

Before training, everything but BN fixed, one inference epoch over all instances; the L2-normalised projections become
the rows of the classifier. The loss sees directions only; rows of unit length give the initial learning rate the same
meaning as Gaussian rows do. Images are resized and centre-cropped, not augmented.
"""

from __future__ import annotations

from typing import Callable

import tensorflow as tf

from instcls_tf import collectives, networks
from instcls_tf.classifier import ShardedClassifier
from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.sources import Source

Progress = Callable[[str, int, int], None]


def initialize_classifier(
    config: PretrainConfig,
    classifier: ShardedClassifier,
    encoder: tf.keras.Model,
    source: Source,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Fills the rows as `config.classifier_init` says; all workers together.

    `raw_running_bn` normalises with the moving statistics of the *previous* iterations and then updates them with the
    current one; `bn_burn_in` epochs of statistics alone come first. `raw_fixed_bn` keeps the initial statistics, 0 and
    1. `raw_batch_bn` normalises with the batch's own statistics. `random` draws Gaussian rows. Moving statistics come
    from the global batch, so that the rows do not depend on which worker saw which image.

    Args:
      config: the recipe.
      classifier: receives the rows.
      encoder: the random network; its BN moving statistics are what the passes leave behind.
      source: the images.
      progress: called with a stage's name, batches done and batches in all.
    """
    # Also where features follow: the class of an image that cannot be read keeps this row.
    classifier.initialize_gaussian()
    if config.classifier_init == "random":
        return
    infer = {"raw_running_bn": _running_bn, "raw_fixed_bn": _fixed_bn, "raw_batch_bn": _batch_bn}
    images_spec = tf.TensorSpec([None, config.image_size, config.image_size, 3], tf.uint8)
    embed = tf.function(infer[config.classifier_init](encoder), [images_spec, tf.TensorSpec([None], tf.int32)])
    burn_in = config.bn_burn_in if config.classifier_init == "raw_running_bn" else 0
    steps = pipeline.steps_per_epoch(source.num_instances, config.batch_size)
    for epoch in range(burn_in + 1):
        stage = "BN burn-in" if epoch < burn_in else "contrastive prior"
        for done, (images, instance_ids, _) in enumerate(_inference_epoch(config, source, epoch), start=1):
            rows, ids = embed(images, instance_ids)
            if epoch == burn_in:
                own = (ids >= classifier.begin) & (ids < classifier.end)
                classifier.write(ids[own] - classifier.begin, rows[own])
            progress(stage, done, steps)
    if config.classifier_init == "raw_batch_bn":
        collectives.average_variables(networks.batch_norm_statistics(encoder), "prior_bn")


def _inference_epoch(config: PretrainConfig, source: Source, epoch: int) -> tf.data.Dataset:
    """Un-augmented images in random order: neighbours in a folder must not share a batch's statistics."""
    return pipeline.inference_batches(
        source,
        image_size=config.image_size,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        rank=collectives.rank(),
        num_workers=collectives.size(),
        shuffle_seed=config.seed + epoch,
    )


def _gather(embeddings: tf.Tensor, instance_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """L2-normalised embeddings `[B, D]` and ids `[B]` of the global batch, without padding."""
    real = instance_ids >= 0
    rows = tf.math.l2_normalize(tf.cast(embeddings, tf.float32)[real], axis=1)
    return collectives.all_gather(rows, "prior_rows"), collectives.all_gather(instance_ids[real], "prior_ids")


def _fixed_bn(encoder: tf.keras.Model):
    return lambda images, instance_ids: _gather(encoder(images, training=False), instance_ids)


def _batch_bn(encoder: tf.keras.Model):
    return lambda images, instance_ids: _gather(encoder(images, training=True), instance_ids)


def _running_bn(encoder: tf.keras.Model):
    probe = networks.batch_norm_probe(encoder)
    layers = networks.batch_norm_layers(encoder)

    def embed(images, instance_ids):
        embeddings, inputs = probe(images, training=False)
        gathered = _gather(embeddings, instance_ids)
        real = instance_ids >= 0
        moments = _global_moments([tf.cast(x, tf.float32)[real] for x in inputs])
        # The features above used the statistics of previous iterations; only now does this one enter.
        with tf.control_dependencies(gathered):
            for layer, (mean, variance) in zip(layers, moments):
                _update_moving(layer, mean, variance)
        return gathered

    return embed


def _global_moments(inputs: list[tf.Tensor]) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Mean and variance of each channel over the global batch, for `[b, H, W, C]` inputs of all BN layers."""
    sizes = [x.shape[-1] for x in inputs]
    sums = tf.concat([tf.reduce_sum(x, [0, 1, 2]) for x in inputs], axis=0)
    squares = tf.concat([tf.reduce_sum(tf.square(x), [0, 1, 2]) for x in inputs], axis=0)
    counts = tf.concat([tf.fill([x.shape[-1]], tf.cast(tf.size(x) // x.shape[-1], tf.float32)) for x in inputs], axis=0)
    # One message for all layers.
    sums, squares, counts = tf.unstack(
        collectives.sum_over_workers(tf.stack([sums, squares, counts]), "prior_bn_moments")
    )
    mean = sums / counts
    variance = tf.maximum(squares / counts - tf.square(mean), 0.0)
    return list(zip(tf.split(mean, sizes), tf.split(variance, sizes)))


def _update_moving(layer: tf.keras.layers.BatchNormalization, mean: tf.Tensor, variance: tf.Tensor) -> None:
    layer.moving_mean.assign(layer.momentum * layer.moving_mean + (1.0 - layer.momentum) * mean)
    layer.moving_variance.assign(layer.momentum * layer.moving_variance + (1.0 - layer.momentum) * variance)
