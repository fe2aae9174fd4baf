"""Runs commands and workers for the tests, as a user's shell and launcher would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def launch(num_workers: int, task: str, folder: Path, *arguments: str, timeout: float = 180) -> None:
    """Runs `task` on `num_workers` workers; one worker is started by hand, without any launcher."""
    command = on_workers(num_workers, [sys.executable, "-m", "tests.parallel.tasks", task, str(folder), *arguments])
    status, output = run_command(command, timeout)
    assert status == 0, f"{' '.join(command)}\n{output[-8000:]}"


def on_workers(num_workers: int, command: list[str]) -> list[str]:
    """The command under `horovodrun`; one worker is started by hand."""
    if num_workers == 1:
        return command
    return [os.path.join(os.path.dirname(sys.executable), "horovodrun"), "-np", str(num_workers), *command]


def run_script(name: str, *flags: str, num_workers: int = 1, timeout: float = 180) -> tuple[int, str]:
    """Exit status and output (both streams) of `python -m scripts.NAME`."""
    return run_command(on_workers(num_workers, [sys.executable, "-m", f"scripts.{name}", *flags]), timeout)


def run_command(command: list[str], timeout: float) -> tuple[int, str]:
    """Exit status and output (both streams) of a command; it and its workers are killed when time is up."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=worker_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Open MPI's workers have sessions of their own: they end when mpirun, which gets the signal first, tells them.
        os.killpg(process.pid, signal.SIGTERM)
        raise
    return process.returncode, output


def worker_environment() -> dict[str, str]:
    """The environment of a user's shell in which the virtual environment is active."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    return {**os.environ, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"}
