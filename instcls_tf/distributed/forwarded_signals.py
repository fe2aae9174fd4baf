"""Signals that the launcher gets, passed on to the workers through `mpirun`. No TensorFlow."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from instcls_tf.distributed import job
from instcls_tf.distributed.job import HEEDED, STOPPED_STATUS

# At either mpirun ends its workers a second later, whatever they have to save; and it gets them as well where all
# processes of a service, or of a job of Slurm, are asked to stop.
_KEPT_FROM_MPIRUN = (signal.SIGTERM, signal.SIGHUP)
# What ends mpirun and its workers all the same.
ENDING = signal.SIGINT


class ForwardedSignals:
    """Within it, requests to stop go to the workers; mpirun is in a session of its own and gets none by itself.

    Args:
      is_resumable: the command saves and stops when it gets SIGUSR1; others are ended.
    """

    def __init__(self, is_resumable: bool):
        self.forwarded = signal.SIGUSR1 if is_resumable else ENDING
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

    def become_mpirun(self) -> None:
        """Between fork and exec: what mpirun gets when the launcher is gone, and does not get while workers save.

        Workers are started with no signal blocked. What ends mpirun is not ignored, as a Ctrl-C is in what a script has
        put into the background, until mpirun handles it itself.
        """
        signal.signal(ENDING, signal.SIG_DFL)
        job.die_with_parent(self.forwarded)
        if self.is_resumable:
            signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT_FROM_MPIRUN)

    def look(self) -> None:
        """Passes on a SIGTERM that somebody has sent to mpirun, and that is kept from it."""
        if self.asked is None and self.process is not None and _is_asked_to_end(self.process.pid):
            self._pass_on(signal.SIGTERM, None)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
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
            self.process.send_signal(ENDING)

    def status(self) -> int:
        """The exit status of a job that was asked to stop and has nothing to lose."""
        return STOPPED_STATUS if self.is_resumable else 128 + int(self.asked or 0)


def _is_asked_to_end(pid: int) -> bool:
    """Whether a SIGTERM waits for a process that has it blocked."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("ShdPnd:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False
