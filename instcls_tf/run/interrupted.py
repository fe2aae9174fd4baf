"""Signals that end a command in the midst of its work: exceptions, so that what it had begun is removed.

No TensorFlow. A run of `pretrain` has its own way, see `signals`, and so has the launcher, which passes them on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from instcls_tf.distributed.job import HEEDED

# How long the main thread may be outside Python when a signal has come: in an operation, or in a collective, which
# never ends where another worker is gone. So much later another signal no longer waits for what the first has begun.
_PATIENCE_SECONDS = 10.0
# How long what follows the exception may take: ending runs that save, removing what was begun.
_UNWINDING_SECONDS = 180.0
# What the watching thread reads besides signals: the exception has been discarded. And the pause before it comes again.
_DISCARDED, _PAUSE_SECONDS = 0, 0.05

_first: Interrupted | None = None


class Interrupted(KeyboardInterrupt):
    """A signal has asked the command to end."""

    def __init__(self, number: int):
        self.number = signal.Signals(number)
        self.told = "ended before it was done"  # the last line says so
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

    Once more where Python discards the exception, as in a `__del__` or in a callback of C. Others that follow do
    nothing, but for Ctrl-C, which ends the process at once, and for any some seconds later. A main thread that does not
    come back to Python within some seconds is not waited for, nor, for ever, one that does not leave the block. A
    signal that was ignored before stays ignored. Within another one it changes nothing, nor in another thread, which
    cannot handle signals.
    """
    global _first
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or any(signal.getsignal(number) is _raise for number in HEEDED):
        yield
        return
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
        _exchange(_raise, signal.SIG_DFL)
        raise _first


def _exchange(handler: object, other: Any) -> None:
    """What Ctrl-C does, where it does so and is not ignored."""
    if signal.getsignal(signal.SIGINT) is handler:
        signal.signal(signal.SIGINT, other)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """A thread that learns of signals even if the main thread, in which Python handles them, is elsewhere."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before, hook = signal.set_wakeup_fd(writer, warn_on_full_buffer=False), sys.unraisablehook
    sys.unraisablehook = functools.partial(_note_discarded, hook, writer)
    threading.Thread(target=_Watch(reader).run, daemon=True).start()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        os.close(writer)


def _note_discarded(
    hook: Callable[[sys.UnraisableHookArgs], object], writer: int, what: sys.UnraisableHookArgs
) -> None:
    """Called by Python, in the thread where an exception has nowhere to go."""
    if isinstance(what.exc_value, Interrupted):
        _exchange(signal.SIG_DFL, _raise)
        os.write(writer, bytes([_DISCARDED]))
    else:
        hook(what)


class _Watch:
    """Sees to it that a signal ends the process; until the block is left, when nobody writes any more.

    Args:
      reader: gives a byte for each signal, see `signal.set_wakeup_fd`.
    """

    def __init__(self, reader: int):
        self._reader = reader
        self._asked: tuple[int, float] | None = None  # by which signal, and when

    def run(self) -> None:
        while self._look():
            pass
        os.close(self._reader)

    def _look(self) -> bool:
        """Waits for what comes next; returns whether the block is not left yet."""
        if not select.select([self._reader], [], [], self._seconds_left())[0]:
            self._be_patient_no_longer()
            return True
        read = os.read(self._reader, 1)
        if read and read[0] == _DISCARDED:
            self._asked = None
            _raise_again()
        elif read and read[0] in HEEDED and _is_heard(read[0]):
            self._hear(read[0])
        return bool(read)

    def _hear(self, number: int) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = number, now
        elif now - self._asked[1] >= _PATIENCE_SECONDS:
            _end_at_once(number, "asked once more")

    def _seconds_left(self) -> float | None:
        if self._asked is None:
            return None
        patience = _PATIENCE_SECONDS if _first is None else _UNWINDING_SECONDS
        return max(0.0, self._asked[1] + patience - time.monotonic())

    def _be_patient_no_longer(self) -> None:
        if self._asked is None or self._seconds_left():
            return  # the exception was raised meanwhile
        if _first is not None:
            _end_at_once(self._asked[0], f"{_UNWINDING_SECONDS:g} s later it had not ended")
        if _is_heard(self._asked[0]):
            _end_at_once(self._asked[0], f"{_PATIENCE_SECONDS:g} s later still in the same operation")
        self._asked = None  # others handle it by now


def _is_heard(number: int) -> bool:
    """Whether a signal is this module's to obey: not where it is ignored, nor in a block that handles it otherwise."""
    return signal.getsignal(number) is _raise or (_first is not None and _first.number == number)


def _raise_again() -> None:
    """In a moment, when the main thread is likely to have left what discards exceptions."""
    global _first
    time.sleep(_PAUSE_SECONDS)
    number, _first = _first.number if _first else None, None
    main = threading.main_thread().ident
    if number is not None and main is not None:
        signal.pthread_kill(main, number)


def _end_at_once(number: int, why: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{signal.Signals(number).name}: ended at once, {why}\n")
        sys.stderr.flush()
    os._exit(128 + number)
