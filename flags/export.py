"""Flags of `export` and `check_export`."""

from __future__ import annotations

import os
import sys

from absl import flags

from flags import paths
from instcls_tf.checks import require_path_of_text, require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.export.names import FORMAT_NAMES

_folder = ""


def define() -> None:
    """The flags of `export`."""
    paths.define_for_tensorflow("workdir", None, "Folder of the run.")
    flags.DEFINE_string("format", "saved_model", f"What to write; one of: {', '.join(FORMAT_NAMES)}.")
    paths.define_for_tensorflow("output", None, "Folder to write to; it must not exist or be empty.")
    flags.DEFINE_integer(
        "serving_version",
        None,
        "Write a SavedModel into a folder of this number below --output, where TensorFlow Serving looks for versions.",
    )


def define_check() -> None:
    """The flags of `check_export`."""
    flags.DEFINE_string("runtime", "", "What opens the export, such as timm; by default the first that is installed.")


def take_folder() -> None:
    """Takes the folder of the export off `sys.argv`.

    Raises:
      UserError: it is missing.
    """
    global _folder
    folder = (*sys.argv[1:2], "")[0]
    if folder.startswith(("--help", "-h")):
        return
    if not folder or folder.startswith("-"):
        raise UserError("check_export: wanted the folder of an export")
    _folder = os.path.expanduser(folder)
    require_path_of_text("output", _folder)
    del sys.argv[1]


def folder() -> str:
    """The folder of the export."""
    return _folder


def define_matrix() -> None:
    """The flags of `export_matrix`."""
    paths.define("environments", None, "Folder that keeps the environments, to be used again.")
    paths.define("page", "docs/export.md", "Markdown whose examples are run, and whose table is written anew.")
    flags.DEFINE_integer("image_size", PretrainConfig.image_size, "Pixels.")
    flags.DEFINE_string("formats", ",".join(FORMAT_NAMES), "Which formats; with some alone, the page is left as it is.")


def formats() -> list[str]:
    """The value of --formats.

    Raises:
      UserError: it names something else.
    """
    value = flags.FLAGS.formats
    fits = set(value.split(",")) <= set(FORMAT_NAMES)
    require_value("formats", value, fits, f"some of {','.join(FORMAT_NAMES)}")
    return value.split(",")
