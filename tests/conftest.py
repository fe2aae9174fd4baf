"""What the processes of pytest-xdist share: the cores of the machine, and what is costly to make."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import traceback
from pathlib import Path
from typing import Any, Callable

import pytest

# Read by TensorFlow when it starts. Processes of pytest-xdist share the cores, one each; and runs in this process are
# compared with those of workers of two, which round as few threads do.
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the package does, which many tests import after TensorFlow

# Shells start what runs in the background with Ctrl-C ignored, nohup ignores SIGHUP, and children would inherit that; a
# handler they do not. Processes of pytest-xdist, themselves children of nohup's, end with that one and not before it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN or "PYTEST_XDIST_WORKER" in os.environ:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], Any]], Any]:
    """Makes what is costly once for all processes of pytest-xdist; the others wait for it.

    `made_once(name, make)` gives what `make(folder)` returned, of a folder of that name. Nobody may change the folder.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each process has a folder of its own in that of the session

    def made(name: str, make: Callable[[Path], Any]) -> Any:
        folder, result = root / "shared" / name, root / "shared" / f"{name}.pickle"
        folder.mkdir(parents=True, exist_ok=True)
        with open(root / "shared" / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not result.exists():
                result.write_bytes(pickle.dumps(_outcome(make, folder)))
        value, failure = pickle.loads(result.read_bytes())
        assert not failure, failure
        return value

    return made


def _outcome(make: Callable[[Path], Any], folder: Path) -> tuple[Any, str]:
    """What was made, or why not: the next one that asks does not try once more."""
    try:
        return make(folder), ""
    except Exception:
        return None, traceback.format_exc()
