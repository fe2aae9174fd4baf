"""What a run logs for programs: `metrics.jsonl`, and for TensorBoard its scalars, settings and views. Rank 0 only."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import tensorflow as tf

from instcls_tf import files
from instcls_tf.errors import one_line
from instcls_tf.run.metrics import metrics_path, read_metrics

Item = TypeVar("Item")


class MetricsLog:
    """Appends one JSON object per log step to `metrics.jsonl` and the same scalars to TensorBoard.

    A log that cannot be written (a full disk) is no reason to lose a run of days: standard error says so once.

    Args:
      workdir: the run's folder, which exists.
      first_step: lines of later steps, left by an interrupted run, are dropped.
    """

    def __init__(self, workdir: str, first_step: int):
        self._path = metrics_path(workdir)
        lines = read_metrics(workdir) if files.is_there(self._path) else []
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= first_step]
        # Of the run so far; lines of older versions do not say it.
        self.seconds = next((line["seconds"] for line in reversed(lines) if _is_kept(line, first_step)), 0.0)
        self._warned = False
        with self._as_warning(), files.whole_file(self._path) as file:
            file.write("".join(kept).encode())
        self._events = tensorboard_folder(workdir)
        self._tensorboard: tf.summary.SummaryWriter | None = None

    def write(self, metrics: dict[str, float]) -> None:
        """`metrics` holds `step` and finite numbers."""
        with self._as_warning():
            self._append(json.dumps(metrics) + "\n")
            self._show(metrics)

    def show_beginning(self, step: int, settings: str, views: np.ndarray) -> None:
        """Gives TensorBoard what numbers do not say: the settings as text, and views that the network sees.

        Args:
          step: number of steps before.
          settings: the flags, one in each line.
          views: `[b, V, S, S, 3]` uint8; each image is a row, each of its views a column.
        """
        rows, columns, height, width, depth = views.shape
        grid = views.swapaxes(1, 2).reshape(rows * height, columns * width, depth)
        with self._as_warning(), self._writer().as_default(step=step):
            tf.summary.text(
                "settings", "".join(f"    {line}\n" for line in settings.encode(errors="replace").decode().splitlines())
            )
            tf.summary.image("views", grid[np.newaxis])

    def _writer(self) -> tf.summary.SummaryWriter:
        if self._tensorboard is None:  # Not before there is something to say: each writer makes a file.
            self._tensorboard = tf.summary.create_file_writer(self._events)
        return self._tensorboard

    def _append(self, line: str) -> None:
        with open(self._path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that did not fit was cut
                    line = "\n" + line
            file.write(line.encode())

    def _show(self, metrics: dict[str, float]) -> None:
        with self._writer().as_default(step=int(metrics["step"])):
            for name, value in metrics.items():
                if name != "step":
                    tf.summary.scalar(name, value)

    def close(self) -> None:
        """Flushes TensorBoard's file."""
        if self._tensorboard is not None:
            with self._as_warning():
                self._tensorboard.close()

    @contextlib.contextmanager
    def _as_warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if not self._warned:
                reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
                sentence = f"{self._path}: cannot be written ({reason}); the run goes on without its log"
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"warning: {one_line(sentence)}\n")
            self._warned = True


def tensorboard_folder(workdir: str) -> str:
    """Where a run keeps what TensorBoard shows."""
    return os.path.join(workdir, "tensorboard")


def _is_kept(line: dict[str, float], first_step: int) -> bool:
    return line["step"] <= first_step and "seconds" in line


class RunClock:
    """The wall time that a run has taken, over all its parts; what is not the run's own work is left out.

    Args:
      started: when this part began, of `time.monotonic()`.
      before: seconds of the parts before.
    """

    def __init__(self, started: float, before: float = 0.0):
        self._started, self._before = started - before, before

    def at_least(self, before: float) -> None:
        """The parts before have taken no less than this."""
        self._started -= max(0.0, before - self._before)
        self._before = max(before, self._before)

    def seconds(self) -> float:
        """So far."""
        return time.monotonic() - self._started

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens meanwhile does not count."""
        stopped = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - stopped


class StepTimer:
    """Adds up, between two reports, how long steps took and how much of that was waiting for data."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._since = time.monotonic()

    def next(self, iterator: Iterator[Item]) -> Item:
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
