"""Where this worker is: stamped by the work itself, read by the watchdog. No TensorFlow, and free of cost."""

from __future__ import annotations

from typing import NamedTuple


class Stamp(NamedTuple):
    """The work's last sign of life."""

    number: int  # of stamps so far: another one means that the work has moved
    phase: str
    done: int
    total: int  # 0 where a phase has no steps

    def __str__(self) -> str:
        return f"{self.phase}, step {self.done} of {self.total}" if self.total else self.phase


_last = Stamp(0, "starting", 0, 0)


def stamp(phase: str, done: int = 0, total: int = 0) -> None:
    """Says that the work has come this far; every long phase says so again and again."""
    global _last
    _last = Stamp(_last.number + 1, phase, done, total)


def go_on() -> None:
    """Says that a phase which has no steps of its own goes on: another file, another block of rows."""
    stamp(*_last[1:])


def last() -> Stamp:
    """The newest stamp of this process."""
    return _last
