"""Fine-tuning: encoder and classifier trained together on some labels (semi-supervised) or on all (transfer)."""

from __future__ import annotations

from typing import Callable

import numpy as np
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.labelled import Splits, labels_of
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives
from instcls_tf.encoder import networks
from instcls_tf.errors import DivergedError, UserError, shown
from instcls_tf.evaluation.accuracy import accuracy_of
from instcls_tf.evaluation.linear import global_cross_entropy, labelled_batches, new_classifier
from instcls_tf.evaluation.recipes import INITS, SCRATCH, FinetuneRecipe
from instcls_tf.files import is_there
from instcls_tf.initial.start import initialize_encoder
from instcls_tf.optimizer import MomentumSGD, WarmupCosine
from instcls_tf.progress import Progress


def initial_backbone(
    init: str, config: PretrainConfig, say: Callable[[str], None] = lambda text: None
) -> tf.keras.Model:
    """The network that fine-tuning starts from, other than the run's own; all workers together.

    Args:
      init: `scratch` (the run's architecture with random weights), or the folder of a Keras
        SavedModel that maps images `[b, H, W, 3]` with pixel values 0..255 to features `[b, F]`; of one that holds a
        part named "backbone", as `export` writes it, that part is taken. Or weights for the run's architecture: another
        run or a file, see `initial.kinds`.
      config: the run's recipe.
      say: called with a line for what is left out of such weights.

    Raises:
      UserError: there is nothing, or what lies there cannot be fine-tuned.
    """
    if init == SCRATCH:
        return networks.make_encoder(config).get_layer("backbone")
    if not is_there(init):
        raise UserError(
            f"--init={shown(init)}: no such file or folder, wanted {', '.join(INITS)}, a run, a SavedModel or weights"
        )
    try:
        model = tf.keras.models.load_model(init, compile=False)
    except (OSError, ValueError):  # no model: weights alone, of a file or of a run
        encoder = networks.make_encoder(config)
        for note in initialize_encoder(encoder, init):
            say(f"--init={shown(init)}: {note}")
        return encoder.get_layer("backbone")
    backbones = [layer for layer in getattr(model, "layers", []) if layer.name == "backbone"]
    model = backbones[0] if backbones else model
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
        raise UserError(f"--init={init}: wanted a model whose output is [batch, features], this one's is {shape}")
    if not model.trainable_variables:
        raise UserError(f"--init={init}: has no trainable variables")
    return model


def finetuned_accuracy(
    backbone: tf.keras.Model,
    train: Source,
    splits: Splits,
    recipe: FinetuneRecipe,
    *,
    image_size: int,
    center_crop_fraction: float,
    progress: Progress,
) -> dict[str, float]:
    """Trains backbone and a new classifier, and judges the last epoch on the test split; all workers together.

    Args:
      backbone: from images to features `[b, F]`; it is trained in place.
      train: the labelled images to learn from, perhaps a part of `splits.train`.
      splits: the dataset; its test split is judged.
      recipe: the settings.
      image_size: pixels.
      center_crop_fraction: what is seen of the images that judge, see `pipeline.inference_batches`, and of the others
        where they are not cut at random.
      progress: of the training.

    Returns:
      `top1`, `top5`, `mean_per_class`, `examples`, `labels` (images learned from) and `loss` of the last step.

    Raises:
      UserError: the training diverged.
    """
    for warning in recipe.warnings(train.num_instances, collectives.size()):
        progress.say(f"warning: {warning}")
    classifier = new_classifier(backbone.output_shape[-1], splits.num_classes, recipe.seed)
    loss = _train(backbone, classifier, train, recipe, image_size, center_crop_fraction, progress)
    # Each worker's BN saw its own share of the batches.
    collectives.average_variables([v for v in backbone.non_trainable_variables if v.dtype.is_floating], "finetune_bn")

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, image_size, image_size, 3], tf.uint8)])
    def predict(images: tf.Tensor) -> tf.Tensor:
        return classifier(backbone(images, training=False))

    result = accuracy_of(
        predict,
        splits.test,
        image_size=image_size,
        center_crop_fraction=center_crop_fraction,
        num_classes=splits.num_classes,
    )
    return {**result, "labels": train.num_instances, "loss": loss}


def _train(
    backbone: tf.keras.Model,
    classifier: tf.keras.layers.Dense,
    source: Source,
    recipe: FinetuneRecipe,
    image_size: int,
    center_crop_fraction: float,
    progress: Progress,
) -> float:
    batch_size = min(recipe.batch_size, source.num_instances)
    # The smaller last batch of an epoch is left out: a worker without a share of it would feed BN with padding.
    steps_per_epoch, has_rest = divmod(source.num_instances, batch_size)
    if batch_size < collectives.size():
        raise UserError(f"{batch_size} images per step for {collectives.size()} workers: run fewer workers")
    steps = recipe.epochs * steps_per_epoch
    parts = list(zip((backbone, classifier), recipe.learning_rates))
    optimizers = [
        MomentumSGD(WarmupCosine(rate, 0, steps), recipe.momentum, recipe.weight_decay, name=f"sgd_{index}")
        for index, (_, rate) in enumerate(parts)
    ]
    train_step = _make_train_step(backbone, classifier, optimizers, image_size)
    period = steps_per_epoch + bool(has_rest)
    labels, in_all = labels_of(source), recipe.epochs * period
    batches = labelled_batches(source, recipe, image_size, labels, batch_size, in_all, center_crop_fraction)
    loss, done = float("nan"), 0
    for index, (images, labels) in enumerate(batches):
        if index % period == steps_per_epoch:
            continue
        loss, done = float(train_step(images, labels)), done + 1
        if not np.isfinite(loss):
            encoder_rate, classifier_rate = recipe.learning_rates
            raise DivergedError(
                f"--encoder_learning_rate={encoder_rate} --classifier_learning_rate={classifier_rate}: diverged at step"
                f" {done}, wanted lower ones"
            )
        progress("fine-tuning", done, steps, f"loss {loss:.3f}")
    return loss


def _make_train_step(
    backbone: tf.keras.Model, classifier: tf.keras.layers.Dense, optimizers: list[MomentumSGD], image_size: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    for model, optimizer in zip((backbone, classifier), optimizers):
        optimizer.build(model.trainable_variables)
    collectives.broadcast_variables([*backbone.variables, *classifier.variables])

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, image_size, image_size, 3], tf.uint8),
            tf.TensorSpec([None], tf.int32),
        ],
    )
    def train_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        real = labels >= 0
        # Images that cannot be read stay out of BN, too, unless there are no others: it must see something.
        seen = tf.logical_or(real, tf.logical_not(tf.reduce_any(real)))
        with tf.GradientTape() as tape:
            logits = classifier(backbone(images[seen], training=True))
            own_part, loss = global_cross_entropy(logits[real[seen]], labels[real], "finetune_loss")
        groups = [backbone.trainable_variables, classifier.trainable_variables]
        gradients = tape.gradient(own_part, [variable for group in groups for variable in group])
        gradients = collectives.sum_one_by_one(gradients, "finetune_gradient")
        split = len(groups[0])
        for optimizer, group, part in zip(optimizers, groups, (gradients[:split], gradients[split:])):
            optimizer.apply_gradients(zip(part, group))
        return loss

    return train_step
