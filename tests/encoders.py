"""Encoders whose weights are all different from what they start as, and what an encoder's features are worth."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.labelled import Splits
from instcls_tf.encoder import networks
from instcls_tf.evaluation import features
from instcls_tf.evaluation.knn import knn_accuracy


def trained_encoder(**changes) -> tf.keras.Model:
    """A small encoder with BN as training leaves it: gammas of zero, as at the start, would hide errors behind them."""
    settings = {"encoder": "resnet18", "width_multiplier": 0.125, "stem": "small", "embedding_size": 16, **changes}
    encoder = networks.build_encoder(**settings)
    rng = np.random.default_rng(1)
    for layer in networks.batch_norm_layers(encoder):
        gamma, variance = rng.uniform(0.5, 1.5, (2, layer.gamma.shape[0]))
        beta, mean = rng.normal(0, 0.2, (2, layer.gamma.shape[0]))
        layer.set_weights([gamma, beta, mean, variance])
    return encoder


def knn_top1(encoder: tf.keras.Model, config: PretrainConfig, splits: Splits, k: int = 20) -> float:
    """The k-NN accuracy of an encoder's pooled features, seen as a recipe has it."""
    seen = {"image_size": config.image_size, "center_crop_fraction": config.center_crop_fraction}
    train, test = (features.extract(encoder.get_layer("backbone"), split, **seen) for split in splits)
    return knn_accuracy(*train, *test, k=k)["top1"]
