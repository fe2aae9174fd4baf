"""Flags of `export`."""

from __future__ import annotations

from absl import flags

FORMATS = ("saved_model",)


def define() -> None:
    """The flags of `export`."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("format", "saved_model", f"What to write; one of: {', '.join(FORMATS)}.")
    flags.DEFINE_string("output", None, "Folder to write to; it must not exist or be empty.")
