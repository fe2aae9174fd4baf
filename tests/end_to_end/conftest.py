"""The run that several tests look at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from instcls_tf.distributed import cores
from tests.commands import Finished, run_command, run_script, script, under_launcher
from tests.end_to_end.runs import flags_of


class PastRun(NamedTuple):
    """A workdir, and what the command said."""

    workdir: Path
    finished: Finished


def launched(workdir: Path, workers: int, **changes) -> PastRun:
    """A run whose workers have as many threads as those of two: other numbers of threads round sums otherwise."""
    command = script("pretrain", *flags_of(workdir, **changes))
    own = sorted(os.sched_getaffinity(0))[: cores.threads_of_worker(2)]
    pinned = ["taskset", "--cpu-list", ",".join(map(str, own))] if workers == 1 else []
    finished = run_command([*pinned, *under_launcher(workers, command)])
    assert finished.status == 0, finished.output
    return PastRun(workdir, finished)


@pytest.fixture(scope="session")
def whole_run(made_once) -> PastRun:
    """The tiny run on one worker, in an interpreter of its own, without a launcher; not to be written to."""
    return made_once("whole", lambda folder: launched(folder / "run", workers=1))


@pytest.fixture(scope="session")
def initialised_run(made_once) -> Path:
    """A run that was only initialised. Only to read."""

    def make(folder: Path) -> Path:
        finished = run_script("pretrain", *flags_of(folder / "run", max_steps=0))
        assert finished.status == 0, finished.output
        return folder / "run"

    return made_once("initialised", make)
