"""One job for each number of workers: importing TensorFlow takes longer than all that they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from tests.parallel.launch import launch


@pytest.fixture(scope="session")
def job(made_once) -> Callable[[int], Path]:
    """From the number of workers to the folder in which each task of `tests.parallel.tasks` has left its results."""

    def folder_of(num_workers: int) -> Path:
        # Others continue from what two workers have saved.
        saved = [] if num_workers == 2 else [str(folder_of(2))]

        def make(folder: Path) -> Path:
            launch(num_workers, "all", folder, *saved)
            return folder

        return made_once(f"job_of_{num_workers}", make)

    return folder_of
