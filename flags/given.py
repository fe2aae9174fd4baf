"""Flags that are given although another one leaves them without any effect."""

from __future__ import annotations

import sys

from absl import flags

from instcls_tf import flagfiles
from instcls_tf.checks import require_value


def refuse(names: tuple[str, ...], wanted: str, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Refuses flags that stand on the parsed command line, whatever their value.

    Args:
      names: of the flags.
      wanted: ends the sentence "must be ...".
      flag_values: where the flags are kept.

    Raises:
      UserError: names the first one and its value.
    """
    for name in names:
        value = flag_values[name].value
        told = ",".join(value) if isinstance(value, list) else value
        require_value(name, told, not flag_values[name].present, wanted)


def by_user() -> list[str]:
    """The flags that stand on the command line itself, not in a flagfile."""
    return flagfiles.names_in(sys.argv[1:])
