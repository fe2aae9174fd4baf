"""Words and flags of `checkpoint`."""

from __future__ import annotations

import os
import sys

from absl import flags

from instcls_tf.checks import require_path_for_tensorflow
from instcls_tf.errors import UserError

INSPECT, VERIFY = ACTIONS = ("inspect", "verify")
_words = ("", "")


def define() -> None:
    """The flags of `checkpoint`."""
    flags.DEFINE_integer("step", None, "Only the checkpoint after so many steps; all by default.")


def take_words() -> None:
    """Takes what to do, and the folder of the run, off `sys.argv`.

    Raises:
      UserError: they are missing, or something else.
    """
    global _words
    action, folder = (*sys.argv[1:3], "", "")[:2]
    if action.startswith(("--help", "-h")):
        return
    if action not in ACTIONS or not folder or folder.startswith("-"):
        raise UserError(f"checkpoint: wanted one of {', '.join(ACTIONS)}, and then the folder of a run")
    folder = os.path.expanduser(folder)
    require_path_for_tensorflow("workdir", folder)
    del sys.argv[1:3]
    _words = (action, folder)


def settings() -> tuple[str, str, int | None]:
    """What to do, the folder, and the step of the one checkpoint that is meant, if any."""
    return (*_words, flags.FLAGS.step)
