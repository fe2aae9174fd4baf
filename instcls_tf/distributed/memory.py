"""The memory of this machine that is free. No TensorFlow."""

from __future__ import annotations

import contextlib
from pathlib import Path

from instcls_tf.distributed.control_groups import GROUPS, PROC, of_process

# Of control groups of both versions: limit, what is used of it, and the line of memory.stat that says how much of that
# are files which are kept while nobody needs the place.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def free_bytes(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """What processes can still have, of the machine and of the control groups that this one is in.

    Args:
      proc: Linux' account of processes and memory.
      groups: where the control groups are.

    Returns:
      None where the system does not tell.
    """
    limits = [_left(folder, *_FILES[version]) for folder, version in of_process("memory", proc, groups)]
    found = [_available(proc / "meminfo"), *limits]
    return min((free for free in found if free is not None), default=None)


def _available(meminfo: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left(folder: Path, limit: str, used: str, files: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
        return max(0, left + _statistic(folder / "memory.stat", files))
    return None


def _statistic(path: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name), 0)
    return 0
