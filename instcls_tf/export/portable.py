"""The encoder as one graph of operations that every format has: what ONNX and LiteRT files are converted from."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from instcls_tf.export.preprocessing import central_square, resize_in_products
from instcls_tf.export.subject import Subject

IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")


def portable_function(subject: Subject) -> Any:
    """A `tf.function` from whole images `IMAGES` to `features` `[b, F]` and `projection` `[b, D]` of unit length."""
    backbone, projection = (subject.encoder.get_layer(name) for name in ("backbone", "projection"))

    @tf.function(autograph=False)
    def embed(images: tf.Tensor) -> dict[str, tf.Tensor]:
        square = central_square(images, subject.image_size, subject.center_crop_fraction, resize_in_products)
        features = backbone(square, training=False)
        unit = tf.math.l2_normalize(projection(features, training=False), axis=1)
        return {"features": features, "projection": unit}

    return embed
