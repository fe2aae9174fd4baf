"""The contrastive prior: class weights from the features of a random network with running BN.

Before training, everything but BN fixed, one inference epoch over all instances; the L2-normalised projections become
the class weights. The loss sees directions only; weights of unit length give the initial learning rate the same meaning
as Gaussian ones do. Images are resized and centre-cropped, not augmented.
"""

from __future__ import annotations

import functools
from typing import Callable

import numpy as np
import tensorflow as tf

from instcls_tf.classifier import tiles
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import RANDOM, RAW_BATCH_BN, RAW_FIXED_BN, RAW_RUNNING_BN, PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.bad_files import BadFiles
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, partition
from instcls_tf.encoder import bn_groups, networks
from instcls_tf.progress import OnProgress, no_progress

# From a batch's images [b, S, S, 3] and ids [b] to class weights [B, D] and ids [B] of all workers, without padding.
Embed = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def initialize_classifier(
    config: PretrainConfig,
    classifier: ShardedClassifier,
    encoder: tf.keras.Model,
    source: Source,
    progress: OnProgress = no_progress,
    bad_files: BadFiles | None = None,
) -> None:
    """Fills the class weights as `config.classifier_init` says; all workers together.

    `raw_running_bn` normalises with the moving statistics of the *previous* iterations and then updates them with the
    current one; `bn_burn_in` epochs of statistics alone come first. `raw_fixed_bn` keeps the initial statistics, 0 and
    1. `raw_batch_bn` normalises with the batch's own statistics. `random` draws Gaussian weights. Moving statistics
    come from the global batch, so that class weights do not depend on which worker saw which image.

    Args:
      config: the recipe.
      classifier: receives the weights.
      encoder: the random network; its BN moving statistics are what the passes leave behind.
      source: the images.
      progress: called with a stage's name, batches done and batches in all.
      bad_files: of the run, checked on the way.

    Raises:
      UserError: too many images cannot be read, or a record file is damaged.
    """
    # Also where features follow: the class of an image that cannot be read keeps this weight.
    classifier.initialize_gaussian()
    if config.classifier_init == RANDOM:
        return
    full_batch = min(config.batch_size, source.num_instances)
    infer: dict[str, Callable[[tf.keras.Model, int], Embed]] = {
        RAW_RUNNING_BN: functools.partial(_running_bn, full_batch=full_batch),
        RAW_FIXED_BN: _fixed_bn,
        RAW_BATCH_BN: functools.partial(_batch_bn, full_batch=full_batch),
    }
    embed = infer[config.classifier_init](encoder, config.micro_batch)
    burn_in = config.bn_burn_in if config.classifier_init == RAW_RUNNING_BN else 0
    _pass_over_images(config, classifier, embed, classifier.write, source, burn_in, progress, bad_files)


def initialize_new_classes(
    config: PretrainConfig,
    classifier: ShardedClassifier,
    encoder: tf.keras.Model,
    source: Source,
    is_new: np.ndarray,
    progress: OnProgress = no_progress,
    bad_files: BadFiles | None = None,
) -> None:
    """Gives new classes a weight beside those of a run that has been trained; all workers together.

    It is the projection of the class's image, normalised by the network's moving statistics, which stay as they are,
    plus the mean difference between the weights of the other classes, as directions, and the projections of theirs:
    training has taken from the weights what all embeddings have in common, and with it the new classes would be
    nearer to every image than the old ones.

    Args:
      config: the recipe.
      classifier: has the weights of the other classes, receives those of the new ones.
      encoder: the trained network.
      source: the images.
      is_new: which of them have no weight yet, bool `[N]`.
      progress: as in `initialize_classifier`.
      bad_files: of the run, checked on the way.

    Raises:
      UserError: too many images cannot be read, or a record file is damaged.
    """
    differences = tf.Variable(tf.zeros([config.embedding_size + 1]))  # their sum, and how many
    local_is_new = tf.constant(is_new[classifier.begin : classifier.end])

    def use(local: tf.Tensor, projections: tf.Tensor) -> None:
        new = tf.gather(local_is_new, local)
        classifier.write(local[new], projections[new])
        directions = tf.math.l2_normalize(classifier.read(local[~new]), axis=1)
        ones = tf.ones([tf.shape(directions)[0], 1])
        differences.assign_add(tf.reduce_sum(tf.concat([directions - projections[~new], ones], axis=1), axis=0))

    embed = _fixed_bn(encoder, config.micro_batch)
    _pass_over_images(config, classifier, embed, use, source, 0, progress, bad_files)
    total = collectives.sum_over_workers(tf.identity(differences), "differences_of_weights")
    shift = tf.math.divide_no_nan(total[:-1], total[-1])
    new = tf.cast(tf.where(local_is_new)[:, 0], tf.int32)
    for start in range(0, len(new), tiles.DRAWN_BLOCK_CLASSES):
        local = new[start : start + tiles.DRAWN_BLOCK_CLASSES]
        classifier.write(local, tf.math.l2_normalize(classifier.read(local) + shift, axis=1))


def _pass_over_images(
    config: PretrainConfig,
    classifier: ShardedClassifier,
    embed: Embed,
    use: Callable[[tf.Tensor, tf.Tensor], None],
    source: Source,
    burn_in: int,
    progress: OnProgress,
    bad_files: BadFiles | None,
) -> None:
    """After so many epochs of statistics alone: what `use` does with this worker's classes `[m]` and projections."""
    images_spec = tf.TensorSpec([None, config.image_size, config.image_size, 3], tf.uint8)
    embed = tf.function(embed, [images_spec, tf.TensorSpec([None], tf.int32)], autograph=False)
    steps = partition.steps_per_epoch(source.num_instances, config.batch_size)
    for epoch in range(burn_in + 1):
        stage = "BN burn-in" if epoch < burn_in else "contrastive prior"
        for done, (images, instance_ids, _) in enumerate(_inference_epoch(config, source, epoch), start=1):
            projections, ids = embed(images, instance_ids)
            if epoch == burn_in:
                own = (ids >= classifier.begin) & (ids < classifier.end)
                use(ids[own] - classifier.begin, projections[own])
            progress(stage, done, steps)
            if bad_files is not None and bad_files.is_due(done, steps):
                bad_files.check()


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
    weights = tf.math.l2_normalize(tf.cast(embeddings, tf.float32)[real], axis=1)
    return collectives.all_gather(weights, "prior_weights"), collectives.all_gather(instance_ids[real], "prior_ids")


def _fixed_bn(encoder: tf.keras.Model, group_rows: int) -> Embed:
    def embed(images: tf.Tensor, instance_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        embeddings, _ = bn_groups.map_groups(
            lambda group, begin, state: (encoder(group, training=False), state),
            images,
            group_rows,
            encoder.output_shape[-1],
            (),
        )
        return _gather(embeddings, instance_ids)

    return embed


def _batch_bn(encoder: tf.keras.Model, group_rows: int, full_batch: int) -> Embed:
    groups = bn_groups.Groups(several=True, in_batch=full_batch / group_rows)

    def embed(images: tf.Tensor, instance_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded = bn_groups.encode(encoder, images, instance_ids >= 0, group_rows, groups)
        encoded.update_statistics()
        return _gather(encoded.embeddings, instance_ids)

    return embed


def _running_bn(encoder: tf.keras.Model, group_rows: int, full_batch: int) -> Embed:
    probe = networks.batch_norm_probe(encoder)
    layers = networks.batch_norm_layers(encoder)

    def embed(images: tf.Tensor, instance_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def add_group(group: tf.Tensor, begin: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            embeddings, inputs = probe(group, training=False)
            real = instance_ids[begin : begin + group_rows] >= 0
            return embeddings, sums + _moments([tf.cast(x, tf.float32)[real] for x in inputs])

        size, width = encoder.output_shape[-1], sum(layer.moving_mean.shape[0] for layer in layers)
        embeddings, sums = bn_groups.map_groups(add_group, images, group_rows, size, tf.zeros([3, width]))
        gathered = _gather(embeddings, instance_ids)
        sums, squares, counts = tf.unstack(collectives.sum_over_workers(sums, "prior_bn_moments"))
        means = tf.math.divide_no_nan(sums, counts)
        variances = tf.maximum(tf.math.divide_no_nan(squares, counts) - tf.square(means), 0.0)
        sizes = [layer.moving_mean.shape[0] for layer in layers]
        # The features above used the statistics of previous iterations; only now does this one enter.
        with tf.control_dependencies(gathered):
            share = tf.cast(tf.size(gathered[1]), tf.float32) / full_batch
            for layer, mean, variance in zip(layers, tf.split(means, sizes), tf.split(variances, sizes)):
                _update_moving(layer, mean, variance, share)
        return gathered

    return embed


def _moments(inputs: list[tf.Tensor]) -> tf.Tensor:
    """Sum, sum of squares and count of each channel of `[b, H, W, C]` inputs of all BN layers, side by side."""
    sums = tf.concat([tf.reduce_sum(x, [0, 1, 2]) for x in inputs], axis=0)
    squares = tf.concat([tf.reduce_sum(tf.square(x), [0, 1, 2]) for x in inputs], axis=0)
    counts = tf.concat([tf.fill([x.shape[-1]], tf.cast(tf.size(x) // x.shape[-1], tf.float32)) for x in inputs], axis=0)
    return tf.stack([sums, squares, counts])


def _update_moving(
    layer: tf.keras.layers.BatchNormalization, mean: tf.Tensor, variance: tf.Tensor, share: tf.Tensor
) -> None:
    """A step towards a batch's statistics, as large a part of one as the batch, in good images, is of a full one."""
    step = share * (1.0 - layer.momentum)
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign((1.0 - step) * moving + step * value)
