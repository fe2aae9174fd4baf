"""Small classifiers, batches for them, and the dense reference with the same class weights."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from instcls_tf.classifier.kernels.passes import CompiledPasses
from instcls_tf.classifier.portable_passes import PortablePasses
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from tests import reference

NUM_INSTANCES, SIZE, NUM_HARD_NEGATIVES = 53, 8, 5
RATE = 0.3
PASSES = (CompiledPasses, PortablePasses)


def classifier(make_passes: Callable, **changes) -> ShardedClassifier:
    """One with the class weights of `weights`, which steps by those passes."""
    layer = ShardedClassifier(NUM_INSTANCES, SIZE, make_passes=make_passes, **changes)
    layer.write(tf.range(NUM_INSTANCES), tf.constant(weights()))
    return layer


def weights() -> np.ndarray:
    random = np.random.default_rng(1)
    rows = random.normal(size=[NUM_INSTANCES, SIZE]) * random.uniform(0.5, 2.0, [NUM_INSTANCES, 1])
    return rows.astype(np.float32)


def batch(step: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings `[12, D]` of any length, ids `[12]` and hard negatives `[12, K]`."""
    random = np.random.default_rng(10 + step)
    ids = np.repeat(random.choice(NUM_INSTANCES, 6, replace=False), 2).astype(np.int32)
    noise = random.normal(size=[12, SIZE]) * np.linspace(0.2, 3, 12)[:, np.newaxis]
    hard_negatives = reference.hard_negatives(weights().astype(np.float64), NUM_HARD_NEGATIVES)[ids]
    return ((weights()[ids] + noise) * 7).astype(np.float32), ids, hard_negatives.astype(np.int32)


def make_dense(**changes) -> reference.DenseClassifier:
    settings = {"temperature": 0.15, "smoothing": 0.2, "smoothing_loss": "marginal", **changes}
    return reference.DenseClassifier(weights(), **settings)


def documented_example() -> str:
    """The training that the layer's docstring shows."""
    (example,) = re.findall(r"\n\n((?:    .*\n)+)", inspect.cleandoc(ShardedClassifier.__doc__).split("Args:")[0])
    return textwrap.dedent(example)
