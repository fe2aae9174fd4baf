"""The exceptions for what a user can mend, and how messages quote what they are about."""

from __future__ import annotations

import contextlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator

# Unicode's categories of what moves, hides or turns other text, or is none: control and format characters, halves of
# surrogate pairs (bytes that are no UTF-8, to Python), line and paragraph separators.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_OF_A_GRAPH = re.compile(r"Graph execution error:|Detected at node|  File \"|\s*\[\[\{\{node")


class UserError(ValueError):
    """A wrong flag, file or folder.

    The message is one sentence that names the flag (or file), the value and what is wanted. Commands print it once,
    without a traceback, and exit with its status.
    """

    status = 2


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Errors about a run's `--workdir` name the flag by which this command was given the run, and keep their kind."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace("--workdir", f"--{flag}")) from error


class NoSplitError(UserError):
    """A dataset has no split of that name."""


class DivergedError(UserError):
    """Training whose numbers have ceased to be finite; the sentence names the step and the flag to look at."""

    status = 1


class MachineError(UserError):
    """A fault of a machine, such as a file system that failed or a bit that flipped: started again, the run goes on."""

    status = 1


def shown(name: object) -> str:
    """A name from data or from the command line as a message quotes it.

    As it is where every character can be seen, else its `repr`: an escape code in a file's name must not reach the
    terminal, a newline must not break the sentence, and bytes of another encoding must not break the print.
    """
    text = str(name)
    return repr(text) if any(map(is_unseen, text)) else text


def some_of(names: Iterable[str], most: int = 10, separator: str = ", ") -> str:
    """The first of many names or sentences, one after the other, and "…" for the others."""
    listed = list(itertools.islice(names, most + 1))
    return separator.join([*listed[:most], *["…"] * (len(listed) > most)])


def one_line(message: str) -> str:
    """A whole message with what cannot be seen escaped, whatever it quotes: the last thing before it is printed."""
    return "".join(ascii(letter)[1:-1] if is_unseen(letter) else letter for letter in message)


def reason_of(error: Exception) -> str:
    """An error's message without the lines in which TensorFlow tells where in a graph it was: a traceback has them."""
    lines = [line for line in str(error).splitlines() if line.strip() and not _OF_A_GRAPH.match(line)]
    return " ".join(line.strip() for line in lines) or str(error)


def is_unseen(letter: str) -> bool:
    """Whether a character moves, hides or turns other text, or is none."""
    return unicodedata.category(letter) in _UNSEEN
