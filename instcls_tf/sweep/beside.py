"""How many trials of a sweep run side by side where the specification leaves it to the machine: as at its first start.

Trials of so many minutes learn less beside others, so the number is part of what identifies them.
"""

from __future__ import annotations

import os

from instcls_tf import files

SIDE_BY_SIDE_NAME = "side_by_side.txt"


def begun_side_by_side(workdir: str, cores: int) -> int | None:
    """The number with which a sweep has begun with so many cores each; None if it has not.

    Raises:
      UserError: the file cannot be read.
      MachineError: the file system fails.
    """
    path = os.path.join(workdir, SIDE_BY_SIDE_NAME)
    if not files.is_there(path):
        return None
    text = files.read_text(path)
    try:
        number, of_each = map(int, text.split())
    except ValueError:
        return None
    return number if of_each == cores and number >= 1 else None


def keep_side_by_side(workdir: str, cores: int, side_by_side: int) -> None:
    """Keeps the number of a sweep that begins.

    Raises:
      UserError: the file cannot be read or written.
      MachineError: the file system fails.
    """
    if begun_side_by_side(workdir, cores) is None:
        files.write(os.path.join(workdir, SIDE_BY_SIDE_NAME), f"{side_by_side} {cores}\n".encode())
