"""`--flagfile`: its lines take its place on the command line. A file that is no UTF-8 is answered with one sentence.

absl's own reading of the same format depends on the locale, takes a byte-order mark for a part of the first flag, and
ends in a traceback for the UTF-16 that PowerShell's `>` writes.
"""

from __future__ import annotations

import os
import re

from instcls_tf.errors import UserError, shown
from instcls_tf.files import decode_text

_FLAG = re.compile(r"--?flagfile(?:=(.*))?", re.DOTALL)


def expand(arguments: list[str], _within: tuple[str, ...] = ()) -> list[str]:
    """Puts the flags of flagfiles in the place of `--flagfile=PATH`; flagfiles may name others.

    Empty lines and those that begin with "#" or "//" are left out.

    Args:
      arguments: the words of the command line.

    Raises:
      UserError: a file cannot be read, is no UTF-8, or names itself.
    """
    expanded: list[str] = []
    words = iter(arguments)
    for word in words:
        found = _FLAG.fullmatch(word)
        if word == "--":
            return [*expanded, word, *words]
        if not found:
            expanded.append(word)
            continue
        path = found[1] if found[1] is not None else next(words, "")
        if not path:
            raise UserError("--flagfile is missing the path of a file")
        path = os.path.expanduser(path)
        if os.path.realpath(path) in _within:
            raise UserError(f"--flagfile: {shown(path)} names itself")
        expanded += expand(_lines(path), (*_within, os.path.realpath(path)))
    return expanded


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"--flagfile: cannot read {shown(path)} ({error.strerror})") from error
    # Not splitlines(): paths may hold its rarer line ends.
    lines = [line.strip() for line in decode_text(content, f"--flagfile={shown(path)}").split("\n")]
    return [line for line in lines if line and not line.startswith(("#", "//"))]
