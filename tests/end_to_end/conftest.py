"""The run that several tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import Finished, run_script
from tests.end_to_end.runs import flags_of


class PastRun(NamedTuple):
    """A workdir, and what the command said."""

    workdir: Path
    finished: Finished


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory) -> PastRun:
    """The tiny run on one worker, without a launcher; not to be written to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finished = run_script("pretrain", *flags_of(workdir))
    assert finished.status == 0, finished.output
    return PastRun(workdir, finished)
