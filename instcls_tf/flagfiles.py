"""`--flagfile`: its lines take its place on the command line. A file that is no UTF-8 is answered with one sentence.

And the same files without a command line: their values as a dataclass has them, and presets by their names.

absl's own reading of the same format depends on the locale, takes a byte-order mark for a part of the first flag, and
ends in a traceback for the UTF-16 that PowerShell's `>` writes.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from instcls_tf.errors import UserError, shown
from instcls_tf.files import decode_text

# A link to the presets of a clone; an installed package has the files themselves.
PRESETS = Path(__file__).parent / "presets"
_SUFFIX = ".flags"
_FLAG = re.compile(r"--?flagfile(?:=(.*))?", re.DOTALL)
_BOOL, _TRUE, _FALSE = "bool", ("true", "t", "1"), ("false", "f", "0")
_NAME = re.compile(r"--?([^=]+)")
# The last line of the file in which a run keeps its recipe: one without it was cut off.
RUN_FLAGS_END = "# end"
_OF_A_RUN = b"--workdir="  # which it names always, and a user's file for many runs does not
_END = re.compile(rb"(?:\A|[\r\n])" + RUN_FLAGS_END.encode() + rb"(?:[\r\n]|\Z)")
# What runs began without: a run's file that does not name it says nothing about it.
LATER = "center_crop_fraction"
# The length of a run, and what makes it longer in a flagfile: a length given beside the file is meant as it is.
_LENGTH, _LONGER = "epochs", "exposures"


def expand(arguments: list[str], _within: tuple[str, ...] = ()) -> list[str]:
    """Puts the flags of flagfiles in the place of `--flagfile=PATH`; flagfiles may name others.

    Those of a run are as `as_meant_today` has them. An `--epochs` after a file whose `--exposures` would make the run
    longer, be it a flag or another file's, sets these to 0, unless there are others beside it.

    Args:
      arguments: the words of the command line.

    Raises:
      UserError: a file cannot be read, is no UTF-8, or names itself.
    """
    expanded: list[str] = []
    longer_by_file = False  # the exposures so far are a file's
    words = iter(arguments)
    for word in words:
        found = _FLAG.fullmatch(word)
        if word == "--":
            return [*expanded, word, *words]
        if not found:
            expanded += _meant([word], longer_by_file)
            longer_by_file = longer_by_file and _LONGER not in names_in([word])
            continue
        path = found[1] if found[1] is not None else next(words, "")
        if not path:
            raise UserError("--flagfile is missing the path of a file")
        path = os.path.expanduser(path)
        if os.path.realpath(path) in _within:
            raise UserError(f"--flagfile: {shown(path)} names itself")
        of_file = expand(_lines(path), (*_within, os.path.realpath(path)))
        expanded += _meant(of_file, longer_by_file)
        longer_by_file = longer_by_file or _LONGER in names_in(of_file)
    return expanded


def _meant(words: list[str], longer_by_file: bool) -> list[str]:
    """A flag or those of a file, after a file's exposures or not: with these at 0 where it gives the length alone."""
    is_length = longer_by_file and _LENGTH in names_in(words) and _LONGER not in names_in(words)
    return [f"--{_LONGER}=0", *words] if is_length else words  # before it: its value may be the next word


def names_in(words: list[str]) -> list[str]:
    """The flags among words of a command line."""
    return [found[1] for found in map(_NAME.match, words) if found]


def with_length(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that win over a recipe's: with `epochs` among them it has no `exposures`, unless they are given."""
    return {_LONGER: 0, **settings} if _LENGTH in settings else settings


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"--flagfile: cannot read {shown(path)} ({error.strerror})") from error
    of_run = is_whole(content) and _OF_A_RUN in content
    words = words_of(content, f"--flagfile={shown(path)}", of_run)
    return as_meant_today(words, path) if of_run else words


def is_whole(content: bytes) -> bool:
    """Whether a run's file has its end."""
    return _END.search(content) is not None


def words_of(content: bytes, name: str, of_run: bool) -> list[str]:
    """The lines of a flagfile as words of a command line, without empty ones and those that begin with "#" or "//".

    Args:
      content: the file's bytes.
      name: the file, or the flag and the file, for the sentence about it.
      of_run: whether a run has written it: paths may have bytes that are no UTF-8 there, and spaces at the end.

    Raises:
      UserError: it is in another encoding.
    """
    # Not splitlines(): paths may hold its rarer line ends.
    lines = [line.lstrip() for line in decode_text(content, name, keep_bytes=of_run).split("\n")]
    return [line if of_run else line.rstrip() for line in lines if line and not line.startswith(("#", "//"))]


def as_meant_today(words: list[str], path: str) -> list[str]:
    """The words of a run's file, of which those before `LATER` were judged on whole squares, at half of the jitter.

    Args:
      words: of `words_of`.
      path: the file, for the sentence about it.

    Raises:
      UserError: the strength of the jitter is no number.
    """
    said = {name: text for name, _, text in (word.lstrip("-").partition("=") for word in words)}
    if LATER in said:
        return words
    whole = [*words, f"--{LATER}=1.0"]
    # Other views than these have no jitter, and their runs the same flags as ever.
    if said.get("augmentation", "simclr") != "simclr":
        return whole
    strength = said.get("color_strength", "1.0")
    return [*whole, f"--color_strength={parse(strength, 'float', f'--color_strength={strength}', path) / 2}"]


def values_of(kind: type, path_or_preset: str) -> dict[str, Any]:
    """The values that a flagfile has for the fields of a dataclass.

    Args:
      kind: the dataclass.
      path_or_preset: the file, or a preset by its name (`photos`).

    Raises:
      UserError: there is no such file or preset, a line is no flag of a field, or its value is of another type.
    """
    path = path_of(path_or_preset)
    return parsed(kind, expand([f"--flagfile={path}"]), path)


def parsed(kind: type, arguments: list[str], path: str) -> dict[str, Any]:
    """The values that words have for the fields of a dataclass.

    Args:
      kind: the dataclass.
      arguments: words of a command line.
      path: the flagfile that they are from.

    Raises:
      UserError: a word is no flag of a field, or its value is of another type.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    values = {}
    words = iter(arguments)
    for word in words:
        name, separator, text = re.sub("^--?", "", word).partition("=")
        if not separator:  # of a truth value: --name, --noname; of others the value is the next word
            negated = name not in types and name.startswith("no") and name[2:] in types
            name, text = (name[2:], "false") if negated else (name, "true")
            if not negated and not types.get(name, _BOOL).startswith(_BOOL):
                text = next(words, "")
        refuse_unknown(kind, [name], f"{shown(path)}: ")
        values[name] = parse(text, types[name], word, path)
    return values


def path_of(path_or_preset: str) -> str:
    """The file of a preset by its name; what is no bare name is a path.

    Raises:
      UserError: there is no such preset; names the nearest.
    """
    if os.path.basename(path_or_preset) != path_or_preset or path_or_preset.endswith(_SUFFIX):
        return path_or_preset
    names = sorted(path.stem for path in PRESETS.glob(f"*{_SUFFIX}"))
    if path_or_preset in names:
        return str(PRESETS / f"{path_or_preset}{_SUFFIX}")
    if os.path.isfile(path_or_preset):
        return path_or_preset
    near = _nearest(path_or_preset, names)
    raise UserError(
        f"preset {shown(repr(path_or_preset))}: there is none of this name{near}; wanted {', '.join(names)}"
    )


def refuse_unknown(kind: type, names: Iterable[str], where: str = "") -> None:
    """Refuses names that are no fields of a dataclass.

    Raises:
      UserError: names the first of them, and the field that is nearest.
    """
    fields = [field.name for field in dataclasses.fields(kind)]
    for name in names:
        if name not in fields:
            raise UserError(f"{where}{shown(repr(name))} is no setting of {kind.__name__}{_nearest(name, fields)}")


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f", did you mean {near[0]!r}?" if near else ""


def parse(text: str, kind: str, line: str, path: str) -> Any:
    """The value of a flag, by the annotation of its field: "int", "float", "bool", "str", "int | None" and so on.

    Raises:
      UserError: it is of another type; quotes the line.
    """
    parsers: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _parse_bool, "str": str}
    try:
        return parsers[kind.split(" ")[0]](text)
    except ValueError as error:
        raise UserError(f"{shown(path)}: cannot understand the line {line!r}") from error


def _parse_bool(text: str) -> bool:
    """By the words that absl has."""
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return text.lower() in _TRUE


def lines_of(settings: Any) -> list[str]:
    """The lines of a flagfile with the values of a dataclass; None is left out."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    return [f"--{name}={text}" for name, text in texts.items() if text is not None]
