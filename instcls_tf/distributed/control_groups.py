"""The control groups by which containers, Slurm and systemd limit what a process may have. No TensorFlow."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def of_process(controller: str, proc: Path = PROC, groups: Path = GROUPS) -> list[tuple[Path, int]]:
    """This process' groups and all that they are in: the limit of each holds.

    Args:
      controller: of what is limited, such as `memory`.
      proc: Linux' account of processes.
      groups: where the control groups are.

    Returns:
      Folders, each with its version, 1 or 2, which decides what the files in it are called.
    """
    found = []
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            version = 1 if controllers else 2
            if version == 1 and controller not in controllers.split(","):
                continue
            root = groups / controller if version == 1 else groups
            below = PurePosixPath(path.lstrip("/"))
            found += [(root / folder, version) for folder in (below, *below.parents)]
    return found
