"""Linear evaluation by the paper's protocol: a linear classifier on the frozen encoder, trained on augmented images."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.config import SIMCLR_VIEWS
from instcls_tf.data import augment, pipeline
from instcls_tf.data.labelled import Splits, labels_of
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, partition
from instcls_tf.errors import DivergedError
from instcls_tf.evaluation import frozen
from instcls_tf.evaluation.accuracy import accuracy_of
from instcls_tf.evaluation.recipes import CROP_FLIP, L2, PROJECTION, STANDARDIZE, FinetuneRecipe, LinearRecipe
from instcls_tf.optimizer import MomentumSGD, WarmupCosine
from instcls_tf.progress import Progress

# Of record files, at most about as many are open and buffered at a time.
_STREAMS = 64


class Scaling(NamedTuple):
    """A fixed map of features that stands before the classifier: `(x - shift) * factor`, or L2 normalisation."""

    shift: np.ndarray  # [F] float32
    factor: np.ndarray  # [F] float32
    to_unit_length: bool

    def __call__(self, features: Any) -> Any:
        """Features `[b, F]`, scaled."""
        if self.to_unit_length:
            return tf.math.l2_normalize(features, axis=1)
        return (features - self.shift) * self.factor


def scaling_of(normalize: str, features: np.ndarray) -> Scaling:
    """The map of `--normalize_features`.

    Args:
      normalize: `none`, `l2` (unit length), or `standardize` (mean 0 and deviation 1 per feature, which is what a BN
        layer without parameters before the classifier learns).
      features: `[N, F]` of the training images, without augmentation.
    """
    shift, factor = np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32)
    if normalize == STANDARDIZE:
        mean, deviation = np.mean(features, axis=0, dtype=np.float64), np.std(features, axis=0, dtype=np.float64)
        # A feature that is always the same says nothing, and must not be divided by 0.
        factor = np.where(deviation > 1e-6 * (np.abs(mean) + 1e-12), 1 / np.maximum(deviation, 1e-30), 0)
        shift, factor = mean.astype(np.float32), factor.astype(np.float32)
    return Scaling(shift, factor, normalize == L2)


def make_linear_views(
    preset: str, image_size: int, seed: int, crop_min_area: float, center_crop_fraction: float
) -> augment.Views:
    """Training views of labelled images.

    Args:
      preset: `crop_flip` (random resized crop and flip, the protocol's), `digits` or `none` (as for pretraining).
      image_size: pixels.
      seed: of the draws.
      crop_min_area: of `crop_flip`: the smallest part of the image's area that a crop covers.
      center_crop_fraction: of the others: what is seen of an image, as of those that judge.
    """
    if preset == CROP_FLIP:
        return augment.Views(SIMCLR_VIEWS, image_size, seed, (), crop_min_area)
    views = augment.make_views(preset, image_size, seed)
    return dataclasses.replace(views, center_crop_fraction=center_crop_fraction)


def labelled_batches(
    source: Source,
    recipe: LinearRecipe | FinetuneRecipe,
    image_size: int,
    labels: np.ndarray,
    batch_size: int,
    steps: int,
    center_crop_fraction: float,
) -> tf.data.Dataset:
    """This worker's batches of training images with their labels, one view per image.

    Args:
      source: the images.
      recipe: their views, and the seed of their order.
      image_size: side S, pixels.
      labels: `[N]` integers.
      batch_size: images per step, all workers together.
      steps: of all epochs.
      center_crop_fraction: what the views are taken from, see `make_linear_views`.

    Returns:
      A dataset of `(images, labels)`: uint8 `[b, S, S, 3]` and int32 `[b]`, -1 for padding.
    """
    views = make_linear_views(recipe.augmentation, image_size, recipe.seed, recipe.crop_min_area, center_crop_fraction)
    batches = pipeline.training_batches(
        source,
        views=views,
        batch_size=batch_size,
        num_views=1,
        # Of record files each group is a stream of its own; no worker may go without one.
        micro_batch=max(1, batch_size // max(_STREAMS, collectives.size())),
        seed=recipe.seed,
        last_step=steps,
        rank=collectives.rank(),
        num_workers=collectives.size(),
    )
    table = tf.constant(labels, tf.int32)

    def with_labels(views: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        real = ids != pipeline.PADDING_ID
        return views[:, 0], tf.where(real, tf.gather(table, tf.maximum(ids, 0)), -1)

    return batches.map(with_labels)


def global_cross_entropy(logits: tf.Tensor, labels: tf.Tensor, name: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Softmax cross-entropy of the global batch of which this worker holds a part.

    Args:
      logits: `[b, C]`; b may be 0.
      labels: `[b]` int32.
      name: of the sum over the workers.

    Returns:
      This worker's part of the mean over the global batch (gradients of it are to be summed over the workers), and
      the whole mean.
    """
    local = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    both = tf.stack([tf.stop_gradient(local), tf.cast(tf.shape(labels)[0], tf.float32)])
    loss_sum, count = tf.unstack(collectives.sum_over_workers(both, name))
    count = tf.maximum(count, 1.0)  # a batch of images that cannot be read
    return local / count, loss_sum / count


def linear_accuracy(
    encoder: tf.keras.Model,
    splits: Splits,
    recipe: LinearRecipe,
    *,
    image_size: int,
    center_crop_fraction: float,
    scaling: Scaling,
    progress: Progress,
) -> dict[str, float]:
    """Trains the classifier and judges the last epoch on the test split; all workers together.

    Args:
      encoder: a model of `networks.build_encoder`.
      splits: labelled images.
      recipe: the protocol.
      image_size: pixels.
      center_crop_fraction: what is seen of the images that judge, see `pipeline.inference_batches`, and of the others
        where they are not cut at random.
      scaling: between encoder and classifier.
      progress: of the training.

    Returns:
      `top1`, `top5`, `mean_per_class`, `examples`, and `loss` of the last step.

    Raises:
      UserError: the training diverged.
      EncoderMovedError: a variable of the encoder changed.
    """
    backbone = encoder.get_layer("backbone")

    def embed(images: tf.Tensor) -> tf.Tensor:
        features = frozen.frozen_features(backbone, images)
        if recipe.features == PROJECTION:
            features = encoder.get_layer("projection")(features, training=False)
        return scaling(features)

    with frozen.stays_frozen(encoder):
        classifier = new_classifier(len(scaling.shift), splits.num_classes, recipe.seed)
        loss = _train(embed, classifier, splits.train, recipe, image_size, center_crop_fraction, progress)

        @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, image_size, image_size, 3], tf.uint8)])
        def predict(images: tf.Tensor) -> tf.Tensor:
            return classifier(embed(images))

        result = accuracy_of(
            predict,
            splits.test,
            image_size=image_size,
            center_crop_fraction=center_crop_fraction,
            num_classes=splits.num_classes,
        )
    return {**result, "loss": loss}


def new_classifier(num_features: int, num_classes: int, seed: int) -> tf.keras.layers.Dense:
    """A linear map to the logits; small Gaussian weights, as everybody's."""
    initializer = tf.keras.initializers.RandomNormal(stddev=0.01, seed=seed)
    classifier = tf.keras.layers.Dense(num_classes, kernel_initializer=initializer, dtype="float32", name="classifier")
    classifier.build([None, num_features])
    return classifier


def _train(
    embed: Callable[[tf.Tensor], tf.Tensor],
    classifier: tf.keras.layers.Dense,
    source: Source,
    recipe: LinearRecipe,
    image_size: int,
    center_crop_fraction: float,
    progress: Progress,
) -> float:
    steps = recipe.epochs * partition.steps_per_epoch(source.num_instances, recipe.batch_size)
    schedule = WarmupCosine(recipe.learning_rate, 0, steps)
    optimizer = MomentumSGD(schedule, recipe.momentum, recipe.weight_decay)
    optimizer.build(classifier.trainable_variables)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, image_size, image_size, 3], tf.uint8),
            tf.TensorSpec([None], tf.int32),
        ],
    )
    def train_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        real = labels >= 0
        inputs = embed(images)[real]
        with tf.GradientTape() as tape:
            own_part, loss = global_cross_entropy(classifier(inputs), labels[real], "linear_loss")
        gradients = tape.gradient(own_part, classifier.trainable_variables)
        gradients = collectives.sum_one_by_one(gradients, "linear_gradient")
        optimizer.apply_gradients(zip(gradients, classifier.trainable_variables))
        return loss

    loss = float("nan")
    labels = labels_of(source)
    batches = labelled_batches(source, recipe, image_size, labels, recipe.batch_size, steps, center_crop_fraction)
    for done, (images, labels) in enumerate(batches, start=1):
        loss = float(train_step(images, labels))
        if not np.isfinite(loss):
            raise DivergedError(f"--learning_rate={recipe.learning_rate}: diverged at step {done}, wanted a lower one")
        progress("linear classifier", done, steps, f"loss {loss:.3f}")
    return loss
