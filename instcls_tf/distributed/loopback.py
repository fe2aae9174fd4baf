"""Keeps what `mpirun` listens on to this machine: a library that is preloaded into it, compiled when first used."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).parent / "loopback.c"


def library() -> Path | None:
    """The compiled library; None where there is no compiler, or no place for it."""
    content = _SOURCE.read_bytes()
    name = f"loopback-{hashlib.sha256(content).hexdigest()[:16]}.so"
    target = Path(sys.prefix) / "lib" / "instcls_tf" / name
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / name
            command = [os.environ.get("CC", "gcc"), "-shared", "-fPIC", "-O1", "-o", str(made), str(_SOURCE), "-ldl"]
            subprocess.run(command, check=True, capture_output=True)
            os.replace(made, target)
    except (OSError, subprocess.CalledProcessError):
        return None
    return target
