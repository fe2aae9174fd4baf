"""What a process says that a signal ends at once, and a signal that does not end the tests."""

from __future__ import annotations

import runpy
import signal
import sys

import pytest

from instcls_tf.distributed.job import STOPPED_STATUS
from tests.commands import ROOT, run_command

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


def test_the_tests_outlive_their_terminal_under_nohup(monkeypatch):
    """By a handler: what they start does not inherit it, as it would that the signal is ignored."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        runpy.run_path(f"{ROOT}/tests/conftest.py")
        assert callable(signal.getsignal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
