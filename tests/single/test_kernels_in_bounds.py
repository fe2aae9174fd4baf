"""The kernels on random shapes under the compiler's sanitizers, for each family of processors that runs here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from instcls_tf.kernels import build
from tests.kernels import FAMILIES, skip_unless_usable

DRIVER = Path(__file__).parents[1] / "kernels" / "random_passes.cc"
FLAGS = ("-std=c++17", "-O1", "-g", "-Wno-psabi", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module", params=FAMILIES)
def driver(request, tmp_path_factory) -> Path:
    skip_unless_usable(request.param)
    kernels = FAMILIES[request.param]
    program = tmp_path_factory.mktemp("kernels") / request.param
    sources = [DRIVER, Path(build.__file__).parent / "streamed_softmax.cc"]
    family = [*build._families()[kernels], f"-DINSTCLS_KERNELS={kernels}", f"-I{sources[1].parent}"]
    subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, *family, *sources, "-o", program], check=True)
    return program


def test_passes_stay_in_bounds_and_agree_for_all_widths_of_tiles(driver):
    finished = subprocess.run([driver, "300"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_a_table_that_is_too_short_is_seen(driver):
    finished = subprocess.run([driver, "20", "short"], capture_output=True, text=True)
    assert finished.returncode != 0
    assert "heap-buffer-overflow" in finished.stderr
