"""Signals that ask a run to stop: noted when they come, obeyed where nothing is lost. No TensorFlow.

SIGTERM is what schedulers and `kill` send, SIGUSR1 what `mpirun` passes on to its workers, SIGINT a Ctrl-C, SIGHUP a
terminal that closes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from instcls_tf.distributed.job import HEEDED, STOPPED_STATUS
from instcls_tf.distributed.launcher import launched_rank_and_size

# How long the other ranks let rank 0 speak, where all have had the signal.
_GRACE_SECONDS = 1.0

# What the last line says of a process that a signal ends at once.
_BEFORE = "stopped before it began, nothing is lost; the same command starts again"

_received: str | None = None
_deferring = False
_state = _BEFORE


class Stopped(Exception):
    """A run was asked to stop, and did so with nothing lost. The message is one sentence; the exit status is 75."""


def received() -> str | None:
    """The name of the first signal that asked this process to stop, None if there was none."""
    return _received


def defer() -> None:
    """From here on a signal is only noted: the run asks for `received()` and stops where nothing is lost."""
    global _deferring
    _deferring = True


def finish(state: str) -> None:
    """From here on a signal ends the process at once again: what there was to lose is saved.

    Args:
      state: what is done and what is not, for the last line.
    """
    global _deferring, _state
    _deferring, _state = False, state


@contextlib.contextmanager
def told(state: str) -> Iterator[None]:
    """Within it, what the last line says of a process that a signal ends at once."""
    global _state
    before, _state = _state, state
    try:
        yield
    finally:
        _state = before


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Within it, the signals of `job.HEEDED` end the process with status 75.

    At once, but after `defer` when it says so; after `finish` at once again. A second Ctrl-C ends it at once, whatever
    is lost. A signal that was ignored before, as SIGHUP is under nohup, stays ignored.
    """
    global _received, _deferring, _state
    _received, _deferring, _state = None, False, _BEFORE
    before = {number: signal.getsignal(number) for number in HEEDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _deferring, _state = None, False, _BEFORE


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    name = signal.Signals(number).name
    if not _deferring:
        _leave(name)
    _received = _received or name
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _leave(name: str) -> None:
    """Ends the process in the middle of whatever it loads: an exception might be caught there."""
    rank, _ = launched_rank_and_size() or (0, 1)
    who = ""
    if rank > 0:
        time.sleep(_GRACE_SECONDS)
        who = f"rank {rank}: "
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{who}{name}: {_state}\n")
        sys.stderr.flush()
    os._exit(STOPPED_STATUS)
