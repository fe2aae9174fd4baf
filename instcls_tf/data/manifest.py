"""Long lists of files in little memory, and the manifest: which file has which instance id, kept over restarts.

A manifest is a text file with one line per id, `ID<TAB>SIZE<TAB>PATH`: bytes of the file when the run began, and its
path below the dataset's folder, in which backslash, newline, tab and carriage return are written as in C. Other bytes,
of whatever encoding, are left as they are. A first line, which earlier versions did not write, tells how many follow.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from instcls_tf import files, stamps
from instcls_tf.errors import UserError, shown

_LINES_AT_ONCE = 100_000
_HEADER = b"# %d images\n"
_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\t", b"\\t"), (b"\r", b"\\r"))
_UNESCAPES = {b"\\": b"\\", b"n": b"\n", b"t": b"\t", b"r": b"\r"}


class Changes(NamedTuple):
    """How the files differ from the manifest that gave them their ids."""

    vanished: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


class ImagePaths:
    """Paths as spans of one block of bytes: 16 bytes each beyond their letters, and no Python object.

    Args:
      block: all bytes.
      begins: where each path begins, int64 `[N]`.
      lengths: bytes of each, int64 `[N]`.
    """

    def __init__(self, block: bytes, begins: np.ndarray, lengths: np.ndarray):
        self.block, self.begins, self.lengths = block, begins, lengths

    def __len__(self) -> int:
        return len(self.begins)

    def bytes_of(self, index: int) -> bytes:
        """One path as the file system has it."""
        begin = int(self.begins[index])
        return self.block[begin : begin + int(self.lengths[index])]

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.bytes_of(index))

    def __iter__(self) -> Iterator[str]:
        return (os.fsdecode(path) for path in self.iter_bytes())

    def iter_bytes(self) -> Iterator[bytes]:
        """All paths as the file system has them."""
        for begin, length in zip(self.begins, self.lengths):
            yield self.block[begin : begin + length]

    def hashes(self) -> np.ndarray:
        """64 bits of each path, int64 `[N]`; the same path has the same hash in this process only."""
        return np.fromiter(map(hash, self.iter_bytes()), np.int64, len(self))

    def extended(self, other: ImagePaths, indices: np.ndarray) -> ImagePaths:
        """These paths and then some of another list's."""
        begins = np.concatenate([self.begins, len(self.block) + other.begins[indices]])
        return ImagePaths(self.block + other.block, begins, np.concatenate([self.lengths, other.lengths[indices]]))


class Merged(NamedTuple):
    """A manifest brought up to date with the files that are there now."""

    paths: ImagePaths  # those of the manifest, then the new ones
    num_known: int
    vanished: np.ndarray  # ids of files that are no longer there


def merge(known: ImagePaths, found: ImagePaths) -> Merged:
    """Keeps the ids of `known` and gives the other files of `found` new ids at the end."""
    known_hashes, found_hashes = known.hashes(), found.hashes()
    if np.array_equal(known_hashes, found_hashes):
        return Merged(known, len(known), np.array([], np.int64))
    new = np.flatnonzero(~np.isin(found_hashes, known_hashes))
    vanished = np.flatnonzero(~np.isin(known_hashes, found_hashes))
    return Merged(known.extended(found, new) if len(new) else known, len(known), vanished)


def file_sizes(root: str, paths: ImagePaths) -> np.ndarray:
    """Bytes of each file now, int64 `[N]`; -1 for what is not there."""
    folder = os.fsencode(root)
    return np.fromiter((_size(os.path.join(folder, path)) for path in paths.iter_bytes()), np.int64, len(paths))


def _size(path: bytes) -> int:
    stamps.go_on()
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def write(path: str, paths: ImagePaths, sizes: np.ndarray) -> None:
    """Writes a manifest; an older one stays until this one is complete.

    Raises:
      UserError: the file cannot be written.
      MachineError: likewise, as the file system fails.
    """
    try:
        with files.whole_file(path) as file:
            _write_lines(file, paths, sizes)
    except OSError as error:
        raise files.error_of(error, f"{shown(path)}: cannot write the list of images ({error.strerror})") from error


def _write_lines(file: BinaryIO, paths: ImagePaths, sizes: np.ndarray) -> None:
    lines = [_HEADER % len(paths)]
    for index, (name, size) in enumerate(zip(paths.iter_bytes(), sizes)):
        lines.append(b"%d\t%d\t%s\n" % (index, size, escape(name)))
        if len(lines) == _LINES_AT_ONCE:
            file.writelines(lines)
            lines.clear()
            stamps.go_on()
    file.writelines(lines)


def read(path: str) -> tuple[ImagePaths, np.ndarray]:
    """The paths in the order of their ids, and the files' sizes, int64 `[N]`.

    Raises:
      UserError: the file is damaged, or cannot be read.
      MachineError: the file system fails.
    """
    try:
        block = files.content_of(path).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot read the list of images ({error.strerror})") from error
    # An editor of another system has saved it: those of a path are escaped.
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    wanted = None
    if block.startswith(b"#"):
        header, _, block = block.partition(b"\n")
        count = re.fullmatch(rb"# (\d+) images", header)
        wanted = int(count[1]) if count else -1
    letters = np.frombuffer(block, np.uint8)
    ends, tabs = np.flatnonzero(letters == ord("\n")), np.flatnonzero(letters == ord("\t"))
    if len(tabs) != 2 * len(ends) or not block.endswith(b"\n"):
        raise UserError(f"{path}: damaged, wanted lines of id, size and path")
    if wanted not in (None, len(ends)):
        raise UserError(f"{path}: cut off, it has {len(ends)} lines of {wanted}: bring it back from a copy")
    begins = np.concatenate([[0], ends[:-1] + 1])
    tabs = tabs.reshape(-1, 2)
    sizes = np.empty(len(ends), np.int64)
    try:
        for index, (begin, first, second) in enumerate(zip(begins, tabs[:, 0], tabs[:, 1])):
            sizes[index] = int(block[first + 1 : second])
            if int(block[begin:first]) != index:
                raise ValueError
    except ValueError:
        raise UserError(f"{path}: damaged in line {index + 1}, wanted id, size and path") from None
    return _unescaped(ImagePaths(block, tabs[:, 1] + 1, ends - tabs[:, 1] - 1)), sizes


def escape(path: bytes) -> bytes:
    """A path as it stands in one line of text."""
    for raw, written in _ESCAPES:
        if raw in path:
            path = path.replace(raw, written)
    return path


def _unescaped(paths: ImagePaths) -> ImagePaths:
    """Rewrites the few paths with a backslash, at the end of the block."""
    slashes = np.flatnonzero(np.frombuffer(paths.block, np.uint8) == ord("\\"))
    if not len(slashes):
        return paths
    tail, size = [], len(paths.block)
    for index in np.unique(np.searchsorted(paths.begins, slashes, "right") - 1):
        first, *escaped = paths.bytes_of(index).split(b"\\")
        path, parts = [first], iter(escaped)
        for part in parts:
            # An empty part is the first half of an escaped backslash; what follows it is literal.
            path.append(b"\\" + next(parts, b"") if not part else _UNESCAPES.get(part[:1], b"") + part[1:])
        joined = b"".join(path)
        paths.begins[index], paths.lengths[index] = size, len(joined)
        tail.append(joined)
        size += len(joined)
    return ImagePaths(paths.block + b"".join(tail), paths.begins, paths.lengths)
