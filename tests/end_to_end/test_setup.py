"""Set-up without a compiler for the kernels, and without CUDA; what takes minutes and the network is not repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, TIMEOUT

# The environment's interpreter, but with a place of its own for the kernels: where they are there nothing is compiled.
_PYTHON = """#!/bin/sh
if [ "$1" != -m ]; then exec {python} "$@"; fi
shift
exec {python} -c "import runpy, sys
sys.prefix = '{folder}'
runpy.run_module(sys.argv[1], run_name='__main__')" "$@"
"""
_STAMP = """.venv/bin/python -VV; echo "$PWD "
sha256sum pyproject.toml requirements.lock scripts/setup.sh scripts/patches/*"""


@pytest.fixture
def set_up(tmp_path) -> Path:
    """A clone whose environment was made before, without kernels."""
    for name in ("pyproject.toml", "requirements.lock", "instcls_tf"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup.sh").write_text((ROOT / "scripts" / "setup.sh").read_text())
    (tmp_path / "scripts" / "patches").symlink_to(ROOT / "scripts" / "patches")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(_PYTHON.format(python=sys.executable, folder=tmp_path / "kernels"))
    python.chmod(0o755)
    stamp = subprocess.run(["bash", "-c", _STAMP], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv" / "stamp").write_text(stamp)
    return tmp_path


def run_setup(folder: Path, **environment: object) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "HOROVOD_GPU_OPERATIONS")}
    return subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=folder,
        env={**inherited, **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def test_a_compiler_that_refuses_the_kernels_is_a_warning(set_up):
    compiler = set_up / "compiler"
    compiler.write_text("#!/bin/sh\necho 'compiler: error: bad value for -march' >&2; echo terminated >&2; exit 1\n")
    compiler.chmod(0o755)
    finished = run_setup(set_up, CXX=compiler)
    assert finished.returncode == 0, finished.stderr
    assert "Already set up" in finished.stdout
    (warning,) = finished.stderr.splitlines()
    assert warning.startswith("Warning: no kernels for the classifier and for views (")
    assert "error: bad value for -march" in warning
    assert warning.endswith("TensorFlow's operations are used, slower on CPUs.")


def test_nccl_is_looked_for_before_anything_is_made(set_up):
    """Asked for NCCL, set-up names what is not there, file by file; the environment that there was stays."""
    cuda, nccl = set_up / "cuda", set_up / "nccl"
    asked = {"PYTHON": sys.executable, "HOROVOD_CUDA_HOME": cuda, "HOROVOD_NCCL_HOME": nccl}
    of_cuda = "; HOROVOD_CUDA_HOME names the folder of the CUDA toolkit."
    wanted = [
        (cuda / "bin" / "nvcc", f"there is no {cuda}/bin/nvcc{of_cuda}"),
        (cuda / "include" / "cuda_runtime.h", f"there is no {cuda}/include/cuda_runtime.h{of_cuda}"),
    ]
    for path, sentence in wanted:
        finished = run_setup(set_up, HOROVOD_GPU_OPERATIONS="NCCL", **asked)
        assert (finished.returncode, finished.stdout) == (1, "")
        assert finished.stderr == f"setup.sh: HOROVOD_GPU_OPERATIONS=NCCL: {sentence}\n"
        path.parent.mkdir(parents=True)
        path.touch()
    if not any(Path(folder, "nccl.h").exists() for folder in ("/usr/include", "/usr/local/include")):
        finished = run_setup(set_up, HOROVOD_GPU_OPERATIONS="NCCL", **asked)
        sentence = "no nccl.h of NCCL's development files was found; HOROVOD_NCCL_HOME names their folder."
        assert finished.stderr == f"setup.sh: HOROVOD_GPU_OPERATIONS=NCCL: {sentence}\n"
    assert (set_up / ".venv" / "stamp").exists()


def test_only_nccl_is_offered(set_up):
    finished = run_setup(set_up, PYTHON=sys.executable, HOROVOD_GPU_OPERATIONS="MPI")
    sentence = "HOROVOD_GPU_OPERATIONS=MPI: must be NCCL, or be left out for CPUs."
    assert (finished.returncode, finished.stderr) == (1, f"setup.sh: {sentence}\n")
