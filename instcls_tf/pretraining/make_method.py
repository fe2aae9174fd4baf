"""The method of a recipe."""

from __future__ import annotations

from typing import Callable

import tensorflow as tf

from instcls_tf import config as recipe
from instcls_tf.checks import refuse_int8_on_gpu
from instcls_tf.classifier.arguments import ZEROS
from instcls_tf.classifier.choice import passes_of
from instcls_tf.classifier.hard_negatives import HardNegatives
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import PretrainConfig
from instcls_tf.encoder import networks
from instcls_tf.methods.diet import DIET
from instcls_tf.methods.instance import InstanceClassification
from instcls_tf.methods.method import Method
from instcls_tf.methods.moco_v2 import MoCoV2
from instcls_tf.methods.pic import LONGEST_ABSENCE, PIC
from instcls_tf.methods.simclr import SimCLR
from instcls_tf.pretraining.steps import Steps

# DIET's for AdamW, at the batch size for which it was published.
_ADAMW_RATE, _ADAMW_BATCH = 1e-3, 256


def make_method(config: PretrainConfig, num_instances: int, encoder: tf.keras.Model) -> Method:
    """The method before its first step; class weights of the instance classification are 0 until something fills them.

    Args:
      config: the recipe.
      num_instances: N.
      encoder: with its initial weights.
    """
    return _MAKERS[config.method](config, num_instances, encoder)


def _instance(config: PretrainConfig, num_instances: int, encoder: tf.keras.Model) -> Method:
    del encoder
    if tf.config.list_physical_devices("GPU"):
        refuse_int8_on_gpu(config)
    classifier = ShardedClassifier(
        num_instances,
        config.embedding_size,
        temperature=config.temperature,
        smoothing=config.smoothing,
        smoothing_loss=config.smoothing_loss,
        momentum=config.effective_class_momentum,
        weight_decay=config.effective_class_weight_decay,
        learning_rate_factor=config.classifier_learning_rate_factor,
        sampled_classes=config.sampled_classes,
        weights_dtype=config.class_weights_dtype,
        momentum_dtype=config.class_momentum_dtype,
        products_dtype=config.class_products_dtype,
        make_passes=passes_of(config.class_passes),
        seed=config.seed,
        initializer=ZEROS,
    )
    hard_negatives = HardNegatives(classifier, config.hard_negatives) if config.smoothing else None
    return InstanceClassification(classifier, hard_negatives, config.batch_contrast, config.batch_contrast_temperature)


def _simclr(config: PretrainConfig, num_instances: int, encoder: tf.keras.Model) -> Method:
    del num_instances, encoder
    return SimCLR(temperature=config.temperature)


def _moco_v2(config: PretrainConfig, num_instances: int, encoder: tf.keras.Model) -> Method:
    return MoCoV2(
        encoder,
        networks.make_encoder(config, config.precision),
        queue_size=config.queue_size(num_instances),
        momentum=config.moco_momentum,
        temperature=config.temperature,
        seed=config.seed,
    )


def _pic(config: PretrainConfig, num_instances: int, encoder: tf.keras.Model) -> Method:
    del encoder
    return PIC(
        num_instances,
        config.embedding_size,
        temperature=config.temperature,
        recent_negatives=config.pic_recent_negatives,
        momentum=config.effective_class_momentum,
        weight_decay=config.effective_class_weight_decay,
        learning_rate_factor=config.classifier_learning_rate_factor,
        longest_absence=min(LONGEST_ABSENCE, Steps(config, num_instances).longest_absence),
        seed=config.seed,
    )


def _diet(config: PretrainConfig, num_instances: int, encoder: tf.keras.Model) -> Method:
    return DIET(
        num_instances,
        encoder.get_layer("backbone").output_shape[-1],
        label_smoothing=config.diet_label_smoothing,
        optimizer=config.diet_optimizer,
        weight_decay=config.effective_class_weight_decay,
        momentum=config.effective_class_momentum,
        learning_rate_factor=config.classifier_learning_rate_factor * _diet_rate(config),
        seed=config.seed,
    )


def _diet_rate(config: PretrainConfig) -> float:
    """What leads from the encoder's learning rate to that of DIET's class weights."""
    if config.diet_optimizer == recipe.SGD or not config.peak_learning_rate:
        return 1.0
    return _ADAMW_RATE * config.batch_size / _ADAMW_BATCH / config.peak_learning_rate


_MAKERS: dict[str, Callable[[PretrainConfig, int, tf.keras.Model], Method]] = {
    recipe.INSTANCE: _instance,
    recipe.SIMCLR: _simclr,
    recipe.MOCO_V2: _moco_v2,
    recipe.PIC: _pic,
    recipe.DIET: _diet,
}
