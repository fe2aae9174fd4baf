"""A task of `tests.parallel.tasks`: some steps of fine-tuning on shares that are uneven. Rank 0 writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from instcls_tf.detection.finetune import make_train_step
from instcls_tf.detection.model import build_detector
from instcls_tf.distributed import collectives, partition
from instcls_tf.distributed.workers import fix_seeds
from instcls_tf.encoder import networks
from instcls_tf.optimizer import MomentumSGD

SIZE, BATCH, STEPS = 32, 5, 4


def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five images; the first three, one worker's share of two, have more objects than the others, the last has none."""
    random = np.random.default_rng(step)
    images = random.integers(0, 255, [BATCH, SIZE, SIZE, 3], np.uint8)
    corners = random.integers(0, 16, [BATCH, 2, 2])
    boxes = np.concatenate([corners, corners + random.integers(8, 16, [BATCH, 2, 2])], axis=-1).astype(np.float32)
    labels = random.integers(0, 2, [BATCH, 2]).astype(np.int32)
    for image, rows in ((3, 1), (4, 0)):
        boxes[image, rows:], labels[image, rows:] = -1, -1
    return images, boxes, labels


def run(folder: Path) -> None:
    fix_seeds(collectives.rank())  # what rank 0 drew must reach the others
    encoder = networks.build_encoder(encoder="resnet18", width_multiplier=1 / 4, stem="small", embedding_size=8)
    detector = build_detector(encoder, 2, image_size=SIZE, pyramid_channels=16)
    for layer in networks.batch_norm_layers(detector):
        layer.trainable = False  # It normalises with each worker's own images otherwise.
    collectives.broadcast_variables(detector.variables)
    step = make_train_step(detector, MomentumSGD(0.05, 0.9, 1e-4), SIZE)
    begin, end = partition.bounds(BATCH, collectives.size(), collectives.rank())
    losses = [float(step(*(values[begin:end] for values in batch(number)))) for number in range(STEPS)]
    if collectives.rank() == 0:
        weights = {f"weights_{index}": values.numpy() for index, values in enumerate(detector.trainable_variables)}
        np.savez(folder / "detection.npz", losses=losses, **weights)
