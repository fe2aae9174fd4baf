"""`metrics.jsonl` of a run, read. No TensorFlow."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Callable

from instcls_tf import files
from instcls_tf.errors import UserError, shown
from instcls_tf.workdir_files import METRICS_NAME

_MOST_STEPS = 2**63


def metrics_path(workdir: str) -> str:
    """Where a run keeps what it logs."""
    return os.path.join(workdir, METRICS_NAME)


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`, in their order; see `read_json_lines`. Each has a number as its `step`.

    Raises:
      UserError: the file cannot be read.
    """
    path = metrics_path(workdir)
    try:
        return read_json_lines(path, _has_step, "with a step")
    except OSError as error:
        raise UserError(f"--workdir={shown(workdir)}: holds no run ({shown(path)}: {error.strerror})") from error


def read_json_lines(
    path: str, fits: Callable[[dict[str, Any]], bool] = lambda line: True, which: str = ""
) -> list[dict[str, Any]]:
    """The objects of a file that has one in each line, in their order.

    A crash may cut the last line or leave NUL bytes where the disk had not been written yet, an editor leaves empty
    lines: what is no JSON object, or does not fit, is left out, with one warning on standard error.

    Args:
      path: of the file.
      fits: whether an object is one of those that the file should have.
      which: of them, for the warning.

    Raises:
      OSError: the file cannot be read.
      MachineError: the file system fails.
    """
    lines = files.content_of(path).split(b"\n")
    if not lines[-1]:
        lines.pop()  # after the last line's end
    parsed = [_parse(line, fits) for line in lines]
    damaged = [number for number, metrics in enumerate(parsed, start=1) if metrics is None]
    if damaged:
        wanted = f"JSON objects {which}".rstrip()
        sys.stderr.write(
            f"warning: {shown(path)}: skipped {len(damaged)} line(s) that are no {wanted}, the first is line"
            f" {damaged[0]}\n"
        )
    return [metrics for metrics in parsed if metrics is not None]


def _parse(line: bytes, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    try:
        found = json.loads(line.strip(b"\0 \t\r"))
    except (ValueError, RecursionError):  # JSON's and UTF-8's errors are of the former kind; many brackets
        return None
    return found if isinstance(found, dict) and fits(found) else None


def _has_step(line: dict[str, Any]) -> bool:
    step = line.get("step")
    # JSON has NaN and Infinity as well.
    return isinstance(step, (int, float)) and not isinstance(step, bool) and abs(step) < _MOST_STEPS
