"""The kernels of the machine that the tests run on."""

from __future__ import annotations

import platform

import pytest

from instcls_tf.classifier.kernels import passes

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
