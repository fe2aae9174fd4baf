"""What an examination says: one finding per topic, with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"
LEVELS = (OK, WARNING, PROBLEM)


class Finding(NamedTuple):
    """One of them."""

    topic: str
    level: str  # `ok`, `warning` (a run is slower or less safe) or `problem` (it fails, or is not the same run)
    says: str
    todo: str = ""  # empty if nothing is to be done
    figures: Mapping[str, Any] = MappingProxyType({})  # what was measured, for programs

    def __str__(self) -> str:
        mark = "" if self.level == OK else f"{self.level.upper()}: "
        return f"{self.topic:12} {mark}{self.says}" + (f"\n{'':12} -> {self.todo}" if self.todo else "")


def judge(topic: str, says: str, figures: Mapping[str, Any], *complaints: tuple[bool, str, str, str]) -> Finding:
    """A finding from conditions.

    Args:
      topic: of the finding.
      says: what was found, if nothing is wrong.
      figures: what was measured.
      *complaints: `(whether it holds, level, what it says, what to do)`; the first that holds counts.
    """
    for holds, level, complaint, todo in complaints:
        if holds:
            return Finding(topic, level, complaint, todo, figures)
    return Finding(topic, OK, says, "", figures)
