"""Commands as a user starts them: from the root of the repository, in a shell where the environment is active."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]

# What the launcher puts before a worker's output: "[1,0]<stderr>:" over MPI, "[0]<stderr>:" over Gloo.
_TAG = re.compile(r"\[(?:1,)?(\d+)\]<std(?:out|err)>:")


class Finished(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Both streams."""
        return self.stdout + self.stderr

    def said_by(self, rank: int | None) -> list[str]:
        """The lines on standard error of one worker under a launcher; None for the launcher's own."""
        said = []
        for line in self.stderr.splitlines():
            own, *tagged = _TAG.split(line)
            # Open MPI sometimes repeats the tag at the end of a line.
            pieces = [(None, own), *zip(map(int, tagged[::2]), tagged[1::2])]
            said += [text.strip() for who, text in pieces if who == rank and text.strip()]
        return said


def run_script(name: str, *arguments: str, workers: int = 1, timeout: float = 180) -> Finished:
    """`python -m scripts.NAME`, through horovodrun if there are several workers."""
    command = [sys.executable, "-m", f"scripts.{name}", *arguments]
    return run_command(under_launcher(workers, command), timeout)


def under_launcher(workers: int, command: list[str]) -> list[str]:
    """The command on several workers; one worker is started by hand, without any launcher."""
    if workers == 1:
        return command
    return [os.path.join(os.path.dirname(sys.executable), "horovodrun"), "-np", str(workers), *command]


def run_command(command: list[str], timeout: float) -> Finished:
    """Runs a command to its end; it and its workers are killed when time is up."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=user_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Open MPI's workers have sessions of their own and outlive a signal to their launcher.
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        raise
    return Finished(process.returncode, stdout, stderr)


def user_environment() -> dict[str, str]:
    """The environment of a user's shell in which the virtual environment is active."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return {**inherited, "PATH": path}


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything in a folder with its time of change and a hash of its content, the folder itself included."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [folder, *folder.rglob("*")]
    }
