"""Set-up goes on where the kernels cannot be compiled; what takes minutes and the network is not repeated here."""

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


def run_setup(folder: Path, compiler: Path) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "HOROVOD_GPU_OPERATIONS")}
    return subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=folder,
        env={**inherited, "CXX": str(compiler)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def test_a_compiler_that_refuses_the_kernels_is_a_warning(set_up):
    compiler = set_up / "compiler"
    compiler.write_text("#!/bin/sh\necho 'compiler: error: bad value for -march' >&2; echo terminated >&2; exit 1\n")
    compiler.chmod(0o755)
    finished = run_setup(set_up, compiler)
    assert finished.returncode == 0, finished.stderr
    assert "Already set up" in finished.stdout
    (warning,) = finished.stderr.splitlines()
    assert warning.startswith("Warning: no kernels for the classifier and for views (")
    assert "error: bad value for -march" in warning
    assert warning.endswith("TensorFlow's operations are used, slower on CPUs.")
