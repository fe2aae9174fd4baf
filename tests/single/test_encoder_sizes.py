"""The arithmetic of encoder sizes equals what Keras builds."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.encoder import networks
from instcls_tf.encoder.sizes import encoder_sizes, sizes_of

_KEPT = tuple(
    getattr(tf.keras.layers, name)
    for name in ("Rescaling", "Conv2D", "ReLU", "ZeroPadding2D", "MaxPooling2D", "GlobalAveragePooling2D", "Dense")
)


def kept_values(model: tf.keras.Model, input_shape: tuple) -> list[int]:
    """Values of one image in the outputs that the backward pass needs."""
    outputs = [layer.output for layer in model.layers if isinstance(layer, _KEPT)]
    shapes = [tf.keras.Model(model.input, outputs).compute_output_shape((1, *input_shape))]
    shapes = shapes if len(outputs) == 1 else shapes[0]
    return [int(np.prod(shape)) for shape in shapes]


@pytest.mark.parametrize(
    ("encoder", "width", "stem", "mlp_head", "side"),
    [
        ("resnet50", 1.0, "imagenet", True, 224),
        ("resnet18", 0.25, "small", True, 33),
        ("resnet10", 0.25, "small", True, 33),
        ("resnet18", 0.5, "imagenet", False, 50),
        ("resnet50", 0.125, "small", False, 15),
    ],
)
def test_parameters_and_activations(encoder, width, stem, mlp_head, side):
    settings = {"encoder": encoder, "width_multiplier": width, "stem": stem, "mlp_head": mlp_head, "embedding_size": 24}
    sizes = encoder_sizes(**settings, image_size=side)
    model = networks.build_encoder(**settings)
    assert sizes.parameters == sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert sizes.statistics == sum(int(np.prod(v.shape)) for v in networks.batch_norm_statistics(model))
    backbone, projection = model.get_layer("backbone"), model.get_layer("projection")
    kept = kept_values(backbone, (side, side, 3)) + kept_values(projection, (backbone.output_shape[-1],))
    assert sizes.activations == sum(kept)
    assert sizes.largest_activation == max(kept)


def test_resnet50_has_its_published_size():
    sizes = encoder_sizes(
        encoder="resnet50", width_multiplier=1, stem="imagenet", mlp_head=False, embedding_size=128, image_size=224
    )
    assert sizes.parameters == 23_508_032 + 2048 * 128 + 128


@pytest.mark.parametrize(
    ("encoder", "width", "stem", "side"),
    [("resnet18", 0.25, "small", 33), ("resnet50", 0.125, "imagenet", 50)],
)
def test_products_are_those_of_the_layers(encoder, width, stem, side):
    settings = {"encoder": encoder, "width_multiplier": width, "stem": stem}
    config = PretrainConfig(**settings, image_size=side, embedding_size=16)
    model = networks.build_encoder(**settings, embedding_size=16)
    count = 0
    backbone = tf.keras.Model(model.get_layer("backbone").input, [
        layer.output for layer in model.get_layer("backbone").layers if hasattr(layer, "kernel")
    ])  # fmt: skip
    shapes = backbone.compute_output_shape((1, side, side, 3))
    for layer, shape in zip(
        [layer for layer in model.get_layer("backbone").layers if hasattr(layer, "kernel")], shapes
    ):
        count += int(layer.kernel.shape.num_elements()) * int(shape[1]) * int(shape[2])
    head = model.get_layer("projection").layers
    count += sum(int(layer.kernel.shape.num_elements()) for layer in head if hasattr(layer, "kernel"))
    assert sizes_of(config).products == count
