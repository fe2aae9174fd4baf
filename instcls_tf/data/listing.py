"""Which files below a folder are images: a walk that no single entry can stop, and what it leaves out.

It never asks for a file's status, keeps no Python object per file, and does not import TensorFlow.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import errno
import itertools
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from instcls_tf import stamps
from instcls_tf.data.image_suffixes import IMAGE_SUFFIXES, UNREAD_SUFFIXES, unread_sentence
from instcls_tf.data.manifest import ImagePaths
from instcls_tf.errors import some_of
from instcls_tf.workdir_files import RUN_FLAGS_NAME

_SUFFIXES, _UNREAD_SUFFIXES = (tuple(map(os.fsencode, suffixes)) for suffixes in (IMAGE_SUFFIXES, UNREAD_SUFFIXES))
_RUN_FLAGS = os.fsencode(RUN_FLAGS_NAME)
# Folders of archives, network storage and operating systems that do not begin with a dot; in small letters.
_PROGRAMS_FOLDERS = frozenset(
    {
        b"__macosx",
        b"__pycache__",
        b"@eadir",
        b"@recently-snapshot",
        b"@recycle",
        b"@tmp",
        b"#recycle",
        b"#snapshot",
        b"$recycle.bin",
        b"recycler",
        b"lost+found",
        b"system volume information",
        b"network trash folder",
        b"temporary items",
    }
)
# What a link answers that leads in a circle, through a file, or to a name that no file can have.
_LEADS_NOWHERE = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
_NAMED = 5
_SHOWN = 60  # letters of each end of a long path


def is_made_by_a_program(name: bytes) -> bool:
    """Whether no person gave a folder this name: hidden ones, recycle bins, previews of a network storage."""
    return name.startswith(b".") or name.lower() in _PROGRAMS_FOLDERS


@dataclasses.dataclass
class LeftOut:
    """What a walk has not looked into, and why; paths below its root."""

    programs_folders: int = 0
    programs_files: int = 0
    programs_names: set[bytes] = dataclasses.field(default_factory=set)  # a few of them
    runs: list[bytes] = dataclasses.field(default_factory=list)
    unlisted: list[tuple[bytes, str]] = dataclasses.field(default_factory=list)  # (path, reason)
    unread: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # images, by suffix
    read: int = 0  # the images that are not left out

    def add(self, entries: _Entries) -> None:
        """Counts what one folder holds that is left out."""
        self.unread.update(entries.unread)
        for name in sorted(entries.programs):
            is_folder = name.endswith(b"/")
            self.programs_folders += is_folder
            self.programs_files += not is_folder
            if len(self.programs_names) <= _NAMED:
                self.programs_names.add(name.rstrip(b"/"))

    def sentences(self) -> tuple[str, ...]:
        """One line for each kind of thing that was left out; what is much begins with "warning: "."""
        said = [unread_sentence(self.unread, self.read)] if self.unread else []
        if self.programs_names:
            kinds = ((self.programs_folders, "folder"), (self.programs_files, "file"))
            number = " and ".join(_count(number, kind) for number, kind in kinds if number)
            names = some_of([_quoted(name) for name in sorted(self.programs_names)], _NAMED)
            said.append(_not_looked_into(f"{number} that programs made ({names})", number))
        if self.runs:
            number = _count(len(self.runs), "folder")
            names = some_of([_quoted(path) for path in self.runs], _NAMED)
            hold = "holds" if len(self.runs) == 1 else "hold"
            said.append(_not_looked_into(f"{number} that {hold} a run ({names})", number))
        if self.unlisted:
            reasons = some_of([f"{_quoted(path)}: {reason}" for path, reason in self.unlisted], _NAMED)
            said.append(f"{_count(len(self.unlisted), 'folder')} could not be listed ({reasons})")
        return tuple(said)


class Listing(NamedTuple):
    """The images below a folder in the byte order of their paths."""

    paths: ImagePaths
    irregular: np.ndarray  # indices of those that are no regular files, int64
    left_out: LeftOut


class _Entries(NamedTuple):
    """What one folder holds; a folder's name ends with a slash, which makes the order that of whole paths."""

    names: list[bytes]  # images and folders, sorted
    irregular: set[bytes]
    programs: list[bytes]
    unread: list[str]  # suffixes of images that are not read
    is_run: bool


def list_images(root: str, passed_over: Iterable[str] = ()) -> Listing:
    """Lists the images below `root`, following links, but no folder twice.

    An entry that cannot be looked at never refuses the rest: an image that is no regular file (a broken link, a pipe)
    is `irregular`, a folder that cannot be listed is left out. So are the folders of runs, which hold a `run.flags`,
    and what programs made. The root itself is looked into whatever it is called and holds.

    Args:
      root: the folder.
      passed_over: folders, below it or elsewhere, that are not looked into; they need not be there.

    Raises:
      OSError: the root itself cannot be listed.
    """
    block, lengths, irregular, left_out = bytearray(), array.array("q"), [], LeftOut()
    top = os.fsencode(root)
    seen = {_identity(top), *(_identity(os.fsencode(folder)) for folder in passed_over if os.path.isdir(folder))}
    entries = _scan(top)
    left_out.add(entries)
    # A stack of our own: Python's ends at a thousand folders within each other.
    stack = [(b"", iter(entries.names), entries.irregular)]
    while stack:
        prefix, names, odd = stack[-1]
        name = next(names, None)
        if name is None:
            stack.pop()
        elif name[-1:] == b"/":
            inside = _enter(top, prefix + name, seen, left_out)
            if inside is not None:
                stack.append((prefix + name, iter(inside.names), inside.irregular))
        else:
            if name in odd:
                irregular.append(len(lengths))
            block.extend(prefix + name)
            lengths.append(len(prefix) + len(name))
    left_out.read = len(lengths)
    sizes = np.frombuffer(lengths, np.int64) if lengths else np.array([], np.int64)
    paths = ImagePaths(bytes(block), np.cumsum(sizes) - sizes, sizes)
    return Listing(paths, np.array(irregular, np.int64), left_out)


def is_in_a_listed_folder(root: str, path: str) -> bool:
    """Whether `list_images(root)` would come by a file that is written to `path`."""
    root, (folder, name) = os.path.realpath(root), os.path.split(os.path.abspath(path))
    place = os.path.relpath(os.path.join(os.path.realpath(folder), name), root)
    *folders, name = place.split(os.sep)
    if os.pardir in folders or name.startswith(".") or any(is_made_by_a_program(os.fsencode(part)) for part in folders):
        return False
    inside = itertools.accumulate([root, *folders], os.path.join)
    next(inside)  # what the root holds does not matter
    return not any(os.path.lexists(os.path.join(folder, RUN_FLAGS_NAME)) for folder in inside)


def _enter(top: bytes, path: bytes, seen: set[tuple[int, int]], left_out: LeftOut) -> _Entries | None:
    """The entries of a folder below `top`; None if it is not looked into."""
    folder = os.path.join(top, path[:-1])
    try:
        identity = _identity(folder)
        if identity in seen:
            return None
        # Folders come in sorted order: which of two links to one counts does not depend on the file system.
        seen.add(identity)
        entries = _scan(folder)
    except OSError as error:
        left_out.unlisted.append((path[:-1], (error.strerror or str(error)).lower()))
        return None
    if entries.is_run:
        left_out.runs.append(path[:-1])
        return None
    left_out.add(entries)
    return entries


def _identity(folder: bytes) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _scan(folder: bytes) -> _Entries:
    names: list[bytes] = []
    irregular: set[bytes] = set()
    programs: list[bytes] = []
    unread: list[str] = []
    is_run = False
    with os.scandir(folder) as entries:
        for entry in entries:
            stamps.go_on()
            name = entry.name
            is_image = name.lower().endswith(_SUFFIXES)
            is_run = is_run or name == _RUN_FLAGS
            if _is_folder(entry, is_image):
                (programs if is_made_by_a_program(name) else names).append(name + b"/")
            elif is_image and name.startswith(b"."):  # "._photo.jpg" of macOS is no picture.
                programs.append(name)
            elif is_image:
                names.append(name)
                if not _is_file(entry):
                    irregular.add(name)
            elif name.lower().endswith(_UNREAD_SUFFIXES) and not name.startswith(b"."):
                unread.append(os.path.splitext(os.fsdecode(name))[1].lower())
    names.sort()
    return _Entries(names, irregular, programs, unread, is_run)


def _is_folder(entry: os.DirEntry, is_image: bool) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # What may be a folder, but cannot be reached, is told by the attempt to list it.
        return not is_image and error.errno not in _LEADS_NOWHERE


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _quoted(path: bytes) -> str:
    text = repr(os.fsdecode(path))
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}…{text[-_SHOWN:]}"


def _count(number: int, kind: str) -> str:
    return f"{number} {kind}" if number == 1 else f"{number} {kind}s"


def _not_looked_into(what: str, number: str) -> str:
    return f"{what} {'was' if re.fullmatch('1 [a-z]+', number) else 'were'} not looked into"
