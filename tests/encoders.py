"""Encoders whose weights are all different from what they start as, for tests of what is exported."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf.encoder import networks


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
