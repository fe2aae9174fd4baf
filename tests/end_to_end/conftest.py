"""One tiny run, made as a user would make it: two workers, stopped in mid-epoch, continued by one."""

from __future__ import annotations

import pytest

from tests.commands import run_script
from tests.end_to_end.tiny import STOPPED_AT, tiny_flags


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The workdir, and what the two parts printed."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    flags = tiny_flags(workdir)
    outputs = []
    for num_workers, extra in ((2, [f"--max_steps={STOPPED_AT}"]), (1, [])):
        status, output = run_script("pretrain", *flags, *extra, num_workers=num_workers)
        assert status == 0, output[-4000:]
        outputs.append(output)
    return workdir, outputs
