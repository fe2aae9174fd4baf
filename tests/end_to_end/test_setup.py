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
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOROVOD_", "PYTHON"))}
    return subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=folder,
        env={**inherited, **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def test_another_system_is_refused_before_anything_is_made(set_up):
    system = set_up / "system" / "uname"
    system.parent.mkdir()
    system.write_text("#!/bin/sh\necho Darwin\n")
    system.chmod(0o755)
    finished = run_setup(set_up, PATH=f"{system.parent}:{os.environ['PATH']}")
    sentence = "Darwin is no Linux, on which alone this runs: take a virtual machine or a container."
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "", f"setup.sh: {sentence}\n")


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


def python_without_environments(path: Path, status: int = 9) -> Path:
    """An interpreter that makes none, at which set-up ends with that status."""
    path.write_text(
        f'#!/bin/sh\n[ "$2" != venv ] && exec {sys.executable} "$@"\necho no environment >&2; exit {status}\n'
    )
    path.chmod(0o755)
    return path


def test_the_environment_keeps_its_interpreter(set_up):
    """Made anew, after an update, it is of the Python that it was of, whichever others there are."""
    python = set_up / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(python_without_environments(set_up / "its_own"))
    (set_up / ".venv" / "stamp").write_text("older\n")
    (set_up / "others").mkdir()
    python_without_environments(set_up / "others" / "python3.11", status=8)
    finished = run_setup(set_up, PATH=f"{set_up}/others:{os.environ['PATH']}")
    assert (finished.returncode, finished.stderr) == (9, "no environment\n")
    assert finished.stdout.startswith(f"Setting up {set_up}/.venv with Python ")


def test_two_workers_have_room_in_a_job_of_slurm(tmp_path):
    """The check at the end: Open MPI does not take the job's one task for the only place."""
    horovodrun = tmp_path / "horovodrun"
    told = "[X] TensorFlow [X] MPI [X] Gloo"
    horovodrun.write_text(f'#!/bin/sh\necho "{told} $OMPI_MCA_ras $OMPI_MCA_plm"\n')
    horovodrun.chmod(0o755)
    lines = (ROOT / "scripts" / "setup.sh").read_text().partition("\nverify() {")[2].partition("\n}\n")[0]
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    words = ["bash", "-c", f"verify() {{{lines}\n}}\nverify"]
    finished = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines() == [f"{told} ^slurm ^slurm"] * 2


def test_nccl_is_looked_for_before_anything_is_made(set_up):
    """Asked for NCCL, set-up names what is not there, one after the other; then it begins."""
    cuda, nccl = set_up / "cuda", set_up / "nccl"
    python = python_without_environments(set_up / "python")
    asked = {"PYTHON": python, "HOROVOD_CUDA_HOME": cuda, "HOROVOD_NCCL_HOME": nccl, "HOROVOD_NCCL_LINK": "SHARED"}

    def refusal() -> str:
        finished = run_setup(set_up, HOROVOD_GPU_OPERATIONS="NCCL", **asked)
        assert (finished.returncode, finished.stdout) == (1, "")
        assert (set_up / ".venv" / "stamp").exists()
        return finished.stderr.removeprefix("setup.sh: HOROVOD_GPU_OPERATIONS=NCCL: ").rstrip()

    of_cuda = f"no CUDA toolkit (bin/nvcc, include/cuda_runtime.h) in {cuda}; HOROVOD_CUDA_HOME names its folder."
    for path in (cuda / "bin" / "nvcc", cuda / "targets" / "x86_64-linux" / "include" / "cuda_runtime.h"):
        assert refusal() == of_cuda
        path.parent.mkdir(parents=True)
        path.touch()
    for folder, name in (("include", "nccl.h"), ("lib", "libnccl.so")):
        if not is_installed(name):
            assert refusal().startswith(f"no {name} in {nccl} {nccl}/{folder} ")
        (nccl / folder).mkdir(parents=True)
        (nccl / folder / name).touch()
    finished = run_setup(set_up, HOROVOD_GPU_OPERATIONS="NCCL", **asked)
    assert (finished.returncode, finished.stderr) == (9, "no environment\n")
    assert finished.stdout.startswith("Setting up ")


def is_installed(name: str) -> bool:
    """Whether this machine has that file of NCCL."""
    folders = [Path(root, folder) for root in ("/usr", "/usr/local") for folder in ("include", "lib", "lib64")]
    return any((folder / name).exists() for folder in [*folders, *Path("/usr/lib").glob("*-linux-gnu")])


def test_only_nccl_is_offered(set_up):
    finished = run_setup(set_up, PYTHON=sys.executable, HOROVOD_GPU_OPERATIONS="MPI")
    sentence = "HOROVOD_GPU_OPERATIONS=MPI: must be NCCL, or be left out for CPUs."
    assert (finished.returncode, finished.stderr) == (1, f"setup.sh: {sentence}\n")
