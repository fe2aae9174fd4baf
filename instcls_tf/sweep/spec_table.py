"""A table of a specification, whose errors name the file and the key."""

from __future__ import annotations

import difflib
import json
import math
import sys
from typing import Any, Callable, TypeVar

from instcls_tf import files
from instcls_tf.errors import UserError, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value = TypeVar("Value")


class SpecTable:
    """Takes the values of a table one by one; what nobody has taken is no key.

    Args:
      path: of the file.
      values: the table.
      within: the keys that lead to it, with a dot at the end; empty for the whole file.
    """

    def __init__(self, path: str, values: dict[str, Any], within: str = ""):
        self.path, self._values, self._within = path, values, within
        self._known: list[str] = []

    def error(self, key: str, problem: str) -> UserError:
        """The sentence about a key, to be raised."""
        return UserError(f"--spec={shown(self.path)}: {shown(self._within + key)}: {problem}")

    def take(self, key: str, wanted: str, fits: Callable[[Any], bool], default: Value) -> Value:
        """The value of a key.

        Args:
          key: its name.
          wanted: ends the sentence "must be ...".
          fits: whether a value is right.
          default: where the key is missing.

        Raises:
          UserError: the value is not right.
        """
        self._known.append(key)
        if key not in self._values:
            return default
        value = self._values[key]
        if not fits(value):
            raise self.error(key, f"{json.dumps(value, default=str)} must be {wanted}")
        return value

    def table(self, key: str) -> SpecTable:
        """A table within this one; an empty one where the key is missing."""
        values: dict[str, Any] = self.take(key, "a table", lambda value: isinstance(value, dict), {})
        return SpecTable(self.path, values, f"{self._within}{key}.")

    def items(self) -> dict[str, Any]:
        """All that it holds, for a table whose keys are names of the user's."""
        return self._values

    def refuse_unknown(self) -> None:
        """Raises UserError for a key that was not taken."""
        for key in self._values:
            if key not in self._known:
                close = difflib.get_close_matches(key, self._known, 1)
                wanted = f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(self._known)}"
                raise self.error(key, f"no such key; {wanted}")


def read_spec_file(path: str) -> SpecTable:
    """The table of a file in TOML, or in JSON if its name ends with `.json`.

    Raises:
      UserError: it cannot be read, or is neither.
    """
    text = files.read_text(path)
    is_json = path.lower().endswith(".json")
    try:
        values = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError as error:  # of both kinds
        reason = " ".join(str(error).split())
        raise UserError(f"--spec={shown(path)}: is no {'JSON' if is_json else 'TOML'} ({reason})") from error
    if not isinstance(values, dict):
        raise UserError(f"--spec={shown(path)}: wanted one JSON object")
    return SpecTable(path, values)


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether it is an integer, and not below the least; truth values are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether it is a finite number; truth values are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_seeds(value: Any) -> bool:
    """Whether it is a list of different seeds."""
    is_list = isinstance(value, list) and len(value) > 0 and all(map(is_whole, value))
    return is_list and len(set(value)) == len(value)
