"""The folder of an export: it appears when it is complete, and takes nobody's place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from instcls_tf import files
from instcls_tf.checks import require_path_for_tensorflow
from instcls_tf.errors import UserError


def refuse_occupied(output_dir: str) -> None:
    """Refuses a target before anything long is done for it.

    Raises:
      UserError: it holds something already, is a file, or has a name that TensorFlow cannot load.
    """
    require_path_for_tensorflow("output", output_dir)
    if os.path.isdir(output_dir):
        if os.listdir(output_dir):
            raise UserError(f"--output={output_dir}: is not empty, name a new or an empty folder")
    elif os.path.lexists(output_dir):
        raise UserError(f"--output={output_dir}: is a file, name a new or an empty folder")


@contextlib.contextmanager
def whole_folder(output_dir: str) -> Iterator[str]:
    """A folder to write into, which takes the name `output_dir` when the block is done, and is gone if the block fails.

    Raises:
      UserError: see `refuse_occupied`, or it cannot be written.
    """
    refuse_occupied(output_dir)
    output_dir = os.path.realpath(output_dir)  # an empty folder may be a link
    try:
        with files.whole_folder(output_dir) as folder:
            yield folder
    except OSError as error:
        raise UserError(f"--output={output_dir}: cannot be written ({error.strerror or error})") from error
