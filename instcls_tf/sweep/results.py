"""`results.jsonl`: what a sweep has found, a line for each trial that is finished, and where it was measured."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from instcls_tf.errors import UserError, shown
from instcls_tf.files import is_there
from instcls_tf.run.metrics import read_json_lines

RESULTS_NAME, CALIBRATIONS_NAME = "results.jsonl", "calibrations.jsonl"


def read_lines(workdir: str, name: str) -> list[dict[str, Any]]:
    """The lines of one of the files of a sweep, of several with the same key the last; none if it is not there."""
    path = os.path.join(workdir, name)
    lines = read_json_lines(path) if is_there(path) else []
    return list({line["key"]: line for line in lines if "key" in line}.values())


def append_line(path: str, line: dict[str, Any]) -> None:
    """Adds an object to a file, on the disk when this returns; one that a crash has cut is closed before.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        with open(path, "ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            is_cut = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * is_cut + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot write this file ({error.strerror})") from error


def commit() -> str | None:
    """The commit of this code, with "+" behind it where files differ; None where there is no Git."""
    root = Path(__file__).resolve().parents[2]
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changes)


@functools.cache
def processor() -> str:
    """The name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
