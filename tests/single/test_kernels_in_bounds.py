"""The kernels under the compiler's address and undefined-behaviour sanitizers, for each family that runs here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from instcls_tf import compiled_softmax
from instcls_tf.kernels import build

DRIVER = Path(__file__).parents[1] / "kernels" / "random_passes.cc"
NAMES = {"sse": "kBaselineKernels", "neon": "kBaselineKernels", "avx2": "kAvx2Kernels", "avx512": "kAvx512Kernels"}
NAMES["avx512_bf16"] = "kAvx512Bf16Kernels"
FLAGS = ("-std=c++17", "-O1", "-g", "-Wno-psabi", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module", params=compiled_softmax.usable_kernels())
def driver(request, tmp_path_factory) -> Path:
    kernels = NAMES[request.param]
    program = tmp_path_factory.mktemp("kernels") / request.param
    sources = [DRIVER, Path(build.__file__).parent / "streamed_softmax.cc"]
    family = [*build._families()[kernels], f"-DINSTCLS_KERNELS={kernels}", f"-I{sources[1].parent}"]
    subprocess.run(["g++", *FLAGS, *family, *sources, "-o", program], check=True)
    return program


def test_passes_stay_in_bounds(driver):
    finished = subprocess.run([driver, "300"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_a_table_that_is_too_short_is_seen(driver):
    finished = subprocess.run([driver, "20", "short"], capture_output=True, text=True)
    assert finished.returncode != 0
    assert "heap-buffer-overflow" in finished.stderr
