"""What a process says that a signal ends at once."""

from __future__ import annotations

import sys

import pytest

from instcls_tf.distributed.job import STOPPED_STATUS
from tests.commands import run_command

_ENDED = """
import os, signal
from instcls_tf.run import signals
with signals.heeded():
    with signals.told("in the middle"):
        {inside}
    {outside}
"""
_KILL = "os.kill(os.getpid(), signal.SIGTERM)"


@pytest.mark.parametrize(
    ("inside", "outside", "state"),
    [(_KILL, "pass", "in the middle"), ("pass", _KILL, "stopped before it began, nothing is lost; the same command")],
)
def test_the_last_line_says_what_is_lost(inside, outside, state):
    finished = run_command([sys.executable, "-c", _ENDED.format(inside=inside, outside=outside)])
    assert finished.status == STOPPED_STATUS
    assert finished.stderr.startswith(f"SIGTERM: {state}")
