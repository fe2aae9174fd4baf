"""Signals that end a command in the midst of its work: exceptions, so that what it had begun is removed.

No TensorFlow. A run of `pretrain` has its own way, see `signals`, and so has the launcher, which passes them on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from instcls_tf.distributed.job import HEEDED

# How long the main thread may be outside Python when a signal has come: in an operation, or in a collective, which
# never ends where another worker is gone.
_PATIENCE_SECONDS = 10.0

_first: Interrupted | None = None


class Interrupted(KeyboardInterrupt):
    """A signal has asked the command to end."""

    def __init__(self, number: int):
        self.number = signal.Signals(number)
        super().__init__(self.number.name)

    @property
    def status(self) -> int:
        """The exit status, as shells have it."""
        return 128 + self.number

    def end_process(self) -> None:
        """Ends this process by the signal, for those who look at how it ended."""
        signal.signal(self.number, signal.SIG_DFL)
        os.kill(os.getpid(), self.number)


def received() -> Interrupted | None:
    """The first signal that was raised within `raised`; libraries may have made another exception of it."""
    return _first


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within it, the first signal of `job.HEEDED` raises `Interrupted` in the main thread.

    Others that follow do nothing, but for Ctrl-C, which ends the process at once. A main thread that does not come back
    to Python within some seconds is not waited for. A signal that was ignored before stays ignored.
    """
    global _first
    _first = None
    before = {number: signal.getsignal(number) for number in HEEDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        with _watched():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    global _first
    if _first is None:
        _first = Interrupted(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise _first


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """A thread that learns of signals even if the main thread, in which Python handles them, is elsewhere."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _watch(reader: int) -> None:
    while numbers := os.read(reader, 1):
        number = numbers[0]
        if number in HEEDED and signal.getsignal(number) is _raise:
            time.sleep(_PATIENCE_SECONDS)
            if _first is None and signal.getsignal(number) is _raise:
                _end_at_once(number)
    os.close(reader)


def _end_at_once(number: int) -> None:
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{name}: ended at once, {_PATIENCE_SECONDS:g} s later still in the same operation\n")
        sys.stderr.flush()
    os._exit(128 + number)
