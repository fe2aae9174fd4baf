"""The memory of this machine that is free. No TensorFlow."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Of control groups, versions 2 and 1: limit, what is used of it, and the line of memory.stat that says how much of that
# are files which are kept while nobody needs the place.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_bytes(proc: Path = _PROC, groups: Path = _GROUPS) -> int | None:
    """What processes can still have, of the machine and of the control groups that this one is in.

    Containers, Slurm and systemd limit memory by such groups.

    Args:
      proc: Linux' account of processes and memory.
      groups: where the control groups are.

    Returns:
      None where the system does not tell.
    """
    found = [_available(proc / "meminfo"), *(_left(folder, *of) for folder, of in _groups_of(proc, groups))]
    return min((free for free in found if free is not None), default=None)


def _available(meminfo: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _groups_of(proc: Path, groups: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """This process' groups and all that they are in: the limit of each holds."""
    found = []
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            version = 0 if not controllers else 1
            if version == 1 and "memory" not in controllers.split(","):
                continue
            root = groups if version == 0 else groups / "memory"
            below = PurePosixPath(path.lstrip("/"))
            found += [(root / folder, _FILES[version]) for folder in (below, *below.parents)]
    return found


def _left(folder: Path, limit: str, used: str, files: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
        return max(0, left + _statistic(folder / "memory.stat", files))
    return None


def _statistic(path: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name), 0)
    return 0
