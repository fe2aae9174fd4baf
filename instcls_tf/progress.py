"""What a long command says to people while it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import Callable

from tqdm import tqdm

from instcls_tf import stamps
from instcls_tf.errors import one_line

# Seconds between plain progress lines where there is no terminal (under a launcher, in a log file).
_LINE_EVERY = 5.0

# What tells of a long piece of work how far it is: a stage's name, and how many of how many parts are done.
OnProgress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """An `OnProgress` that tells nobody."""


class Progress:
    """A bar on a terminal, one plain line every few seconds elsewhere.

    Args:
      visible: False on all ranks but 0.
      within: whether its stages are parts of another one, which has a progress of its own: a bar vanishes when it is
        done, and stages of a few seconds are not mentioned.
    """

    def __init__(self, visible: bool, within: bool = False):
        self._visible = visible and sys.stderr is not None
        self._within = within
        self._bar: tqdm | None = None
        self._stage = ""
        self._started = self._last_line = 0.0
        self._first = 0

    def say(self, text: str) -> None:
        """Prints one line to standard error."""
        if not self._visible:
            return
        try:
            # In one piece: launchers mark each piece with its worker.
            tqdm.write(one_line(text) + "\n", file=sys.stderr, end="")
            sys.stderr.flush()
        except OSError:
            # The reader of the pipe has left, or the disk of the log is full: no reason to lose a run of days.
            self._visible = False
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Reports `done` of `total` steps of a stage; the first report of a stage, maybe of 0, starts its clock."""
        stamps.stamp(stage, done, total)
        if not self._visible:
            return
        if stage != self._stage:
            self.close()
            self._stage, self._started, self._first = stage, time.monotonic(), max(0, done - 1)
            self._last_line = self._started
            if sys.stderr.isatty():
                self._bar = self._new_bar(stage, total)
        if self._bar is not None:
            self._bar.set_postfix_str(detail, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        took_long = now - self._started >= _LINE_EVERY or not self._within
        if now - self._last_line >= _LINE_EVERY or (done == total and took_long):
            self._last_line = now
            left = (now - self._started) / max(1, done - self._first) * (total - done)
            line = f"{stage}: step {done}/{total}" + (f", {detail}" if detail else "")
            self.say(line + (f", {_clock(left)} left" if done < total else f", took {_clock(now - self._started)}"))

    def _new_bar(self, stage: str, total: int) -> tqdm:
        return tqdm(
            total=total,
            initial=self._first,
            desc=stage,
            unit="step",
            dynamic_ncols=True,
            leave=not self._within,
            delay=_LINE_EVERY if self._within else 0,
        )

    def close(self) -> None:
        """Ends the current stage and its bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def in_words(seconds: float) -> str:
    """A length of time, roughly."""
    if seconds < 1:
        return "less than a second"
    if seconds < 120:
        return f"{seconds:.0f} second{'s' if round(seconds) > 1 else ''}"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"
