"""Runs a task of `tests.parallel.tasks` on real workers, as a user's launcher would."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.commands import run_command, under_launcher


def launch(num_workers: int, task: str, folder: Path, *arguments: str) -> None:
    """Runs `task` on `num_workers` workers; one worker is started by hand, without any launcher."""
    command = [sys.executable, "-m", "tests.parallel.tasks", task, str(folder), *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOROVOD_TIMELINE", "DYNAMIC")  # a task may start it
        finished = run_command(under_launcher(num_workers, command))
    assert finished.status == 0, f"{' '.join(command)}\n{finished.output[-8000:]}"
