"""The kernels of the machine that the tests run on."""

from __future__ import annotations

import functools
import platform

import pytest
import tensorflow as tf

from instcls_tf.classifier.kernels import passes
from instcls_tf.classifier.kernels.passes import CompiledPasses
from instcls_tf.classifier.local_classes import LocalClasses, Sgd
from instcls_tf.classifier.table import Table

TILE_CLASSES = 61  # odd, and no multiple of any block of the kernels

# By the names that the kernels give themselves; the variables that hold them.
FAMILIES = {
    "x86_64": {
        "avx512_bf16": "kAvx512Bf16Kernels",
        "avx512": "kAvx512Kernels",
        "avx2": "kAvx2Kernels",
        "sse": "kBaselineKernels",
    },
    "aarch64": {"neon": "kBaselineKernels"},
}[platform.machine()]


def skip_unless_usable(name: str) -> None:
    """Skips what this processor cannot run."""
    assert passes.available(), "./scripts/setup.sh compiles the kernels"
    if name not in passes.usable_kernels():
        pytest.skip(f"this processor cannot run {name} kernels")


def passes_of_family(name: str):
    """Makes the passes of one family of processors, with small tiles; skips what this one cannot run."""
    skip_unless_usable(name)
    return functools.partial(CompiledPasses, kernels=name, tile_classes=TILE_CLASSES)


def classes_of(weights, momentum=None) -> LocalClasses:
    weights = tf.Variable(weights, dtype=tf.float32)
    momentum = tf.Variable(tf.zeros_like(weights)) if momentum is None else momentum
    return LocalClasses(Table(weights), Table(momentum), 0)


def step_of(learning_rate=0.0, momentum_factor=0.0, seed=0) -> Sgd:
    return Sgd(tf.constant(learning_rate), momentum_factor, 0.0, tf.constant(seed))
