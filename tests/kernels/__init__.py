"""The kernels of the machine that the tests run on."""

from __future__ import annotations

import platform

import pytest

from instcls_tf import compiled_softmax

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
    assert compiled_softmax.available(), "./scripts/setup.sh compiles the kernels"
    if name not in compiled_softmax.usable_kernels():
        pytest.skip(f"this processor cannot run {name} kernels")
