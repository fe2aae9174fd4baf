"""Flags that name a file or a folder: `~` is expanded here, when they are read, for every command alike."""

from __future__ import annotations

import os
from typing import Callable

from absl import flags

from instcls_tf.checks import require_path_for_tensorflow, require_path_of_text

flags.disclaim_key_flags()  # --help lists a flag under the module that asked for it


class PathParser(flags.ArgumentParser):
    """Turns `~/x` and `~user/x` into whole paths; shells do so only where the path is a word of its own.

    Args:
      name: of the flag.
      check: refuses a path that is not fit.
    """

    syntactic_help = "a path"

    def __init__(self, name: str, check: Callable[[str, str], None]):
        super().__init__()
        self._name, self._check = name, check

    def parse(self, argument: str) -> str:
        """The path as the file system takes it.

        Raises:
          UserError: the path is not fit.
        """
        path = os.path.expanduser(argument)
        self._check(self._name, path)
        return path

    def flag_type(self) -> str:
        """As absl names the type."""
        return "string"


def define(name: str, default: str | None, description: str, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag that names a file or a folder."""
    flags.DEFINE(PathParser(name, require_path_of_text), name, default, description, flag_values)


def define_for_tensorflow(
    name: str, default: str | None, description: str, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines a flag that names a folder which TensorFlow itself reads or writes, such as a run's checkpoints."""
    flags.DEFINE(PathParser(name, require_path_for_tensorflow), name, default, description, flag_values)
