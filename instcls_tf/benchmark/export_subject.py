"""A ResNet-50 in several formats, and its outputs for the images of `export.measure`: what the matrix measures.

python -m instcls_tf.benchmark.export_subject FOLDER 224 saved_model onnx
"""

from __future__ import annotations

import os
import sys

import numpy as np
import tensorflow as tf

from instcls_tf.encoder import networks
from instcls_tf.export.formats import FORMATS
from instcls_tf.export.measure import BATCHES, OTHER_SHAPES, batch_of, name_of
from instcls_tf.export.subject import Subject
from instcls_tf.export.writing import export

REFERENCE_NAME = "reference.npz"
_PHOTOGRAPH = (375, 500)


def write_all(folder: str, image_size: int, formats: list[str]) -> None:
    """Writes `FOLDER/<format>` for some formats, and the reference.

    Args:
      folder: is there, and empty.
      image_size: pixels.
      formats: their names.
    """
    encoder = networks.build_encoder()  # the paper's ResNet-50, which every format has
    _set_statistics(encoder)
    subject = Subject(encoder, image_size, 0.875)
    for name in formats:
        export(FORMATS[name], subject, os.path.join(folder, name))
    arrays = {}
    shapes = [(batch, *size) for size in ((image_size, image_size), _PHOTOGRAPH) for batch in BATCHES]
    for shape in [*shapes, *((1, *size) for size in OTHER_SHAPES)]:
        features, projection = subject.outputs(tf.constant(batch_of(*shape)))
        arrays[name_of(*shape, "features")], arrays[name_of(*shape, "projection")] = (
            features.numpy(),
            projection.numpy(),
        )
    np.savez(os.path.join(folder, REFERENCE_NAME), **arrays)


def _set_statistics(encoder: tf.keras.Model) -> None:
    """BN as training leaves it. Gammas of zero, as at the start, would hide errors behind them."""
    random = np.random.default_rng(1)
    for layer in networks.batch_norm_layers(encoder):
        gamma, variance = random.uniform(0.5, 1.5, (2, layer.gamma.shape[0]))
        beta, mean = random.normal(0, 0.2, (2, layer.gamma.shape[0]))
        layer.set_weights([gamma, beta, mean, variance])


if __name__ == "__main__":
    write_all(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
