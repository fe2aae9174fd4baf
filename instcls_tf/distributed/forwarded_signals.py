"""Signals that the launcher gets, passed on to the workers through `mpirun`. No TensorFlow."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from types import FrameType

from instcls_tf.distributed.job import HEEDED, STOPPED_STATUS


class ForwardedSignals:
    """Within it, requests to stop go to the workers; mpirun is in a session of its own and gets none by itself.

    Args:
      is_resumable: the command saves and stops when it gets SIGUSR1; others are ended.
    """

    def __init__(self, is_resumable: bool):
        self.forwarded = signal.SIGUSR1 if is_resumable else signal.SIGTERM
        self.is_resumable = is_resumable
        self.asked: signal.Signals | None = None
        self.process: subprocess.Popen | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> ForwardedSignals:
        for number in HEEDED:
            self._before[number] = signal.getsignal(number)
            if self._before[number] is not signal.SIG_IGN:  # as SIGHUP is under nohup
                signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what getsignal gave

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = signal.Signals(number)
            if number == signal.SIGINT and self.is_resumable:
                with contextlib.suppress(OSError):
                    sys.stderr.write("Ctrl-C: the workers save and stop; once more ends them at once\n")
                    sys.stderr.flush()
            if self.process is None:
                sys.exit(self.status())  # not begun, or between two attempts
            self.process.send_signal(self.forwarded)
        elif number == signal.SIGINT and self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def status(self) -> int:
        """The exit status of a job that was asked to stop and has nothing to lose."""
        return STOPPED_STATUS if self.is_resumable else 128 + int(self.asked or 0)
