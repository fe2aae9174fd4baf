"""The kernels on random shapes under the compiler's sanitizers, for each family of processors that runs here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from instcls_tf.classifier.kernels import streamed_softmax
from instcls_tf.compiler import Library
from instcls_tf.data.kernels import views
from tests.kernels import FAMILIES, skip_unless_usable

DRIVERS = Path(__file__).parents[1] / "kernels"
FLAGS = ("-std=c++17", "-O1", "-g", "-Wno-psabi", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiled(library: Library, driver: str, name: str, folder: Path) -> Path:
    """The driver with the kernels of one family."""
    skip_unless_usable(name)
    kernels = FAMILIES[name]
    sources = [DRIVERS / driver, library.folder / f"{library.name}.cc"]
    family = [*library.families[kernels], *library.flags, f"-DINSTCLS_KERNELS={kernels}", f"-I{library.folder}"]
    subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, *family, *sources, "-o", folder / name], check=True)
    return folder / name


CASES = [
    pytest.param((library, driver, name), id=f"{library.name}-{name}")
    for library, driver in [(streamed_softmax.LIBRARY, "random_passes.cc"), (views.LIBRARY, "random_views.cc")]
    for name in FAMILIES
    if FAMILIES[name] not in library.left_out
]


@pytest.fixture(scope="module", params=CASES)
def driver(request, tmp_path_factory) -> Path:
    """Of the classifier's passes, which agree for all widths of tiles, and of views, whose pixels stay in range."""
    library, source, name = request.param
    return compiled(library, source, name, tmp_path_factory.mktemp(library.name))


def test_kernels_stay_in_bounds_and_agree(driver):
    finished = subprocess.run([driver, "300"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_an_array_that_is_too_short_is_seen(driver):
    finished = subprocess.run([driver, "20", "short"], capture_output=True, text=True)
    assert finished.returncode != 0
    assert "heap-buffer-overflow" in finished.stderr
