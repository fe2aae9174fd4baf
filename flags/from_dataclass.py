"""Flags from the fields of a dataclass, whose defaults they take, and the dataclass from the parsed flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from absl import flags

from flags import paths

flags.disclaim_key_flags()  # --help lists a flag under the module that asked for it

Settings = TypeVar("Settings")

_DEFINE = {
    "int": flags.DEFINE_integer,
    "float": flags.DEFINE_float,
    "bool": flags.DEFINE_bool,
    "str": flags.DEFINE_string,
}


def define(
    kind: type,
    descriptions: Mapping[str, str],
    *,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    path_names: tuple[str, ...] = (),
    only: tuple[str, ...] | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Defines a flag per field; a flag that another dataclass of the command has defined already is shared.

    Choices and limits are checked by the dataclass, whose sentences name flag, value and what is wanted.

    Args:
      kind: the dataclass. Fields are numbers, words or truth values, or tuples of numbers, given with commas between.
      descriptions: of every field that gets a flag.
      choices: the words that a field may be, named at the end of its description.
      path_names: the fields that name a file or a folder, besides `workdir`.
      only: the fields that get a flag; all by default.
      flag_values: where the flags are kept.
    """
    for field in dataclasses.fields(kind):
        default: Any = field.default
        if field.name in flag_values or (only is not None and field.name not in only):
            continue
        description = descriptions[field.name]
        if choices and field.name in choices:
            description += " One of: " + ", ".join(choices[field.name]) + "."
        # Annotations are strings: "int", "str | None", "tuple[float, ...]".
        word = field.type.split(" ")[0].partition("[")[0]
        if field.name == "workdir":
            paths.define_for_tensorflow(field.name, default, description, flag_values)
        elif field.name in path_names:
            paths.define(field.name, default, description, flag_values)
        elif word == "tuple":
            text = ",".join(f"{value:g}" for value in default)
            flags.DEFINE_string(field.name, text, description, flag_values=flag_values)
        else:
            _DEFINE[word](field.name, default, description, flag_values=flag_values)


def read(kind: type[Settings], *, flag_values: flags.FlagValues = flags.FLAGS, **others: Any) -> Settings:
    """The settings that the parsed command line describes, not yet checked.

    Args:
      kind: the dataclass; a field without a flag keeps its default.
      flag_values: where the flags are kept.
      **others: values of fields that are not those of their flags.
    """
    fields: tuple[dataclasses.Field, ...] = dataclasses.fields(kind)  # type: ignore[arg-type] # a dataclass's type
    names = [field.name for field in fields if field.name in flag_values]
    return kind(**{**{name: flag_values[name].value for name in names}, **others})
