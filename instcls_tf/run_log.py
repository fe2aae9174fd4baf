"""What a run says: progress for people, `metrics.jsonl` and TensorBoard scalars for programs. Rank 0 only."""

from __future__ import annotations

import json
import os
import sys
import time

import tensorflow as tf
from tqdm import tqdm

# Seconds between plain progress lines where there is no terminal (under a launcher, in a log file).
_LINE_EVERY = 5.0


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
            tqdm.write(text + "\n", file=sys.stderr, end="")
            sys.stderr.flush()
        except OSError:
            # The reader of the pipe has left, or the disk of the log is full: no reason to lose a run of days.
            self._visible = False
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Reports `done` of `total` steps of a stage; the first report of a stage, maybe of 0, starts its clock."""
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


class MetricsLog:
    """Appends one JSON object per log step to `metrics.jsonl` and the same scalars to TensorBoard.

    Args:
      workdir: the run's folder, which exists.
      first_step: lines of later steps, left by an interrupted run, are dropped.
    """

    def __init__(self, workdir: str, first_step: int):
        self._path = os.path.join(workdir, "metrics.jsonl")
        kept = [line for line in self._lines() if json.loads(line)["step"] <= first_step]
        temporary = self._path + ".new"
        with open(temporary, "w") as file:
            file.writelines(kept)
        os.replace(temporary, self._path)
        self._events = os.path.join(workdir, "tensorboard")
        self._tensorboard = None

    def _lines(self) -> list[str]:
        if not os.path.exists(self._path):
            return []
        with open(self._path) as file:
            # A line cut by a crash has no end.
            return [line for line in file if line.endswith("\n")]

    def write(self, metrics: dict[str, float]) -> None:
        """`metrics` holds `step` and finite numbers."""
        with open(self._path, "a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._tensorboard is None:  # Not before there is something to say: each writer makes a file.
            self._tensorboard = tf.summary.create_file_writer(self._events)
        with self._tensorboard.as_default(step=int(metrics["step"])):
            for name, value in metrics.items():
                if name != "step":
                    tf.summary.scalar(name, value)

    def close(self) -> None:
        """Flushes TensorBoard's file."""
        if self._tensorboard is not None:
            self._tensorboard.close()


class StepTimer:
    """Adds up, between two reports, how long steps took and how much of that was waiting for data."""

    def __init__(self):
        self._waited = 0.0
        self._since = time.monotonic()

    def next(self, iterator):
        """`next(iterator)`, timed."""
        start = time.monotonic()
        item = next(iterator)
        self._waited += time.monotonic() - start
        return item

    def report(self, images: int) -> dict[str, float]:
        """Images per second and the share of time spent waiting for data since the last report; starts anew."""
        now = time.monotonic()
        elapsed = max(now - self._since, 1e-9)
        rates = {"images_per_second": images / elapsed, "data_wait_fraction": min(1.0, self._waited / elapsed)}
        self._waited, self._since = 0.0, now
        return rates
