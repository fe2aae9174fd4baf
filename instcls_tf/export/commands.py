"""What the command `export` does."""

from __future__ import annotations

import os
from typing import Any

from instcls_tf.checks import require_value
from instcls_tf.export.folder import refuse_occupied
from instcls_tf.export.formats import FORMATS
from instcls_tf.export.subject import subject_of_run
from instcls_tf.export.writing import export, refuse_missing_packages


def export_of_run(
    workdir: str, output_dir: str, format_name: str = "saved_model", serving_version: int | None = None
) -> dict[str, Any]:
    """Writes the encoder of a run's newest checkpoint in one of the formats.

    Args:
      workdir: the run's folder.
      output_dir: folder to write; it may exist if it is empty.
      format_name: see `formats.FORMATS`.
      serving_version: of a SavedModel: write into a folder of this number below `output_dir`, where TensorFlow Serving
        looks for versions; others may be there already.

    Returns:
      `output`, `format`, `verified_in`, `metric` and `max_error`.

    Raises:
      UserError: there is no run, it has no checkpoint, no such format, a package is missing, or `output_dir` cannot be
        written.
    """
    require_value("format", format_name, format_name in FORMATS, "one of " + ", ".join(FORMATS))
    if serving_version is not None:
        fits = format_name == "saved_model" and serving_version >= 1
        require_value("serving_version", serving_version, fits, "1 or more, and comes with --format=saved_model")
        output_dir = os.path.join(output_dir, str(serving_version))
    refuse_occupied(output_dir)
    refuse_missing_packages(FORMATS[format_name])
    card = export(FORMATS[format_name], subject_of_run(workdir), output_dir)
    return {"output": output_dir, **{name: card[name] for name in ("format", "verified_in", "metric", "max_error")}}
