"""Results as files, complete or not there, and text files as people leave them: one sentence where that fails."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO, Callable, TypeVar

from instcls_tf.errors import MachineError, UserError, shown

Result = TypeVar("Result")

# What a file system says of a path when it works: asked once more, it says the same.
_ANSWERS = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
)  # fmt: skip
# And why it does not write until a person has mended it.
TO_BE_MENDED = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
)  # fmt: skip
# How often one that fails is asked, and the seconds between.
_TRIES, _PAUSE_SECONDS = 4, 2.0

# UTF-32's little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_text(path: str) -> str:
    """A text file that holds names of files, see `decode_text`; what is no text in them is kept.

    Raises:
      UserError: it cannot be read, or is in another encoding.
      MachineError: the file system fails again and again.
    """
    try:
        content = content_of(path)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot read this file ({error.strerror})") from error
    return decode_text(content, shown(path), keep_bytes=True)


def decode_text(content: bytes, name: str, keep_bytes: bool = False) -> str:
    """The content of a file in UTF-8, with or without a byte-order mark, its lines ended by newlines alone.

    Args:
      content: the file's bytes.
      name: the file, or the flag and the file, for the sentence about it.
      keep_bytes: bytes that are no UTF-8 stay as in names of files, instead of being refused.

    Raises:
      UserError: it is in another encoding, such as the UTF-16 that PowerShell's `>` writes.
    """
    try:
        if b"\0" in content or any(content.startswith(mark) for mark, _ in _MARKS):
            raise ValueError
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape" if keep_bytes else "strict")
    except ValueError as error:
        raise UserError(f"{name}: is in {_encoding_of(content)}, wanted UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding_of(content: bytes) -> str:
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    # Letters of Latin text have a zero beside each.
    return "UTF-16 or binary data" if b"\0" in content else "another encoding"


def refuse_unwritable(path: str, flag: str = "output") -> None:
    """Makes the folder of a file and tries to write there, before anything long is done for it.

    Raises:
      UserError: the file cannot be written.
      MachineError: likewise, as the file system fails.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        try:
            with open(path, "xb"):
                pass
        except FileExistsError:
            with open(path, "ab"):
                pass
        else:
            os.remove(path)
    except OSError as error:
        raise error_of(error, f"--{flag}={shown(path)}: cannot write this file ({error.strerror})") from error


def write(path: str, content: bytes) -> None:
    """Writes a file; one that is there already stays until this one is complete.

    Raises:
      UserError: the file cannot be written.
      MachineError: likewise, as the file system fails.
    """
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise error_of(error, f"{shown(path)}: cannot write this file ({error.strerror})") from error


def flush_to_disk(path: str) -> None:
    """Returns once what was written into a file is on the disk.

    Raises:
      OSError: it cannot be brought there.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: str) -> None:
    """`flush_to_disk` of the names in a folder, where its file system can do so."""
    with contextlib.suppress(OSError):
        flush_to_disk(path)


def scratch_prefix(parent: str) -> str:
    """What the name of a folder to write in, inside `parent`, begins with: hidden, and with this process in it.

    Those that processes of this machine had begun before they were killed are removed.
    """
    own = re.compile(rf"\.writing-{re.escape(machine())}-(\d+)-\w+")
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            begun = own.fullmatch(name)
            if begun and not is_running(int(begun[1])):
                shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
    return f".writing-{machine()}-{os.getpid()}-"


def is_running(pid: int) -> bool:
    """Whether there is such a process on this machine, whosever it is: `/proc` is not everywhere, and may hide some."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # to send it a signal, if it is another user's
    return True


def machine() -> str:
    """This machine, or a container on it: processes of another have numbers of their own."""
    try:
        return f"{os.uname().nodename}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return os.uname().nodename


def patiently(look: Callable[[], Result], path: str) -> Result:
    """What `look` finds at a path; where a network file system fails for a moment (ESTALE, EIO), it looks again.

    Raises:
      OSError: the file system's answer: nothing is there, or it is not to be read.
      MachineError: it has failed each time.
    """
    for left in reversed(range(_TRIES)):
        try:
            return look()
        except OSError as error:
            if error.errno in _ANSWERS:
                raise
            if not left:
                raise MachineError(f"{shown(path)}: cannot be read ({error.strerror}), tried {_TRIES} times") from error
        time.sleep(_PAUSE_SECONDS)
    raise AssertionError("the last try returns or raises")


def content_of(path: str) -> bytes:
    """The bytes of a file; where a network file system fails for a moment, it is read again.

    Raises:
      OSError: the file system's answer: nothing is there, or it is not to be read.
      MachineError: it has failed each time.
    """

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    return patiently(read, path)


def error_of(error: OSError, sentence: str) -> UserError:
    """A file system's error as a sentence: for a person to mend, or a fault of the machine (ESTALE, EIO)."""
    # NumPy has no number for a disk that is full.
    is_mistake = error.errno is None or error.errno in _ANSWERS or error.errno in TO_BE_MENDED
    return (UserError if is_mistake else MachineError)(sentence)


def is_there(path: str, follow_links: bool = True) -> bool:
    """`os.path.exists`, or `lexists`, which take a file system that fails for a "no".

    Raises:
      MachineError: the file system fails again and again.
    """
    return _mode(path, follow_links) is not None


def is_folder(path: str) -> bool:
    """`os.path.isdir`, likewise.

    Raises:
      MachineError: the file system fails again and again.
    """
    return stat.S_ISDIR(_mode(path) or 0)


def _mode(path: str, follow_links: bool = True) -> int | None:
    try:
        return patiently(lambda: os.stat(path, follow_symlinks=follow_links), path).st_mode
    except OSError:
        return None


def names_in(folder: str) -> list[str]:
    """What is in a folder; nothing where there is none.

    Raises:
      UserError: it is not to be read.
      MachineError: the file system fails again and again.
    """
    try:
        return patiently(lambda: os.listdir(folder), folder) if is_there(folder) else []
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be read ({error.strerror})") from error


def missing_folders(folder: str) -> tuple[str, ...]:
    """What `os.makedirs` would make: a folder and those above it, as far as they are not there, the innermost first."""
    path, missing = os.path.abspath(folder), []
    while not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return tuple(missing)


def nearest_existing(folder: str) -> str:
    """A folder, or of those above it the nearest that is there."""
    missing = missing_folders(folder)
    return os.path.dirname(missing[-1]) if missing else os.path.abspath(folder)


def remove_made(folders: tuple[str, ...]) -> None:
    """Removes what was `missing_folders` before, as far as nothing is in it."""
    for folder in folders:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def look_again(folder: str) -> None:
    """Has a network file system forget that a folder, or what is in it, was not there a while ago.

    It trusts that for up to a minute, unless the folder above is listed: so those on the way are, from the nearest that
    is there. What cannot be listed is left for the caller to meet.
    """
    above = os.path.dirname(folder)
    if above != folder and not os.path.isdir(folder):
        look_again(above)
    with contextlib.suppress(OSError):
        os.listdir(folder)


@contextlib.contextmanager
def whole_folder(path: str) -> Iterator[str]:
    """A folder to write into, which takes the name `path` when the block is done, and is gone if the block fails.

    Args:
      path: where nothing is, or an empty folder.

    Raises:
      OSError: the folder cannot be written.
    """
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    # Beside the target, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(dir=parent, prefix=scratch_prefix(parent)) as scratch:
        complete = os.path.join(scratch, "complete")  # unlike scratch itself, readable by other users
        os.mkdir(complete)
        yield complete
        os.replace(complete, path)


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file to write into, which takes the name `path` when the block is done, and is gone if the block fails.

    For callers that say themselves what is wrong; `write` is for the others.

    Raises:
      OSError: the file cannot be written.
    """
    target = os.path.realpath(path)
    is_device = os.path.exists(target) and not os.path.isfile(target)  # or a pipe
    temporary = target if is_device else target + ".new"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if not is_device:  # else, after a crash, the new name may be there without what it names
                os.fsync(file.fileno())
        if not is_device:
            os.replace(temporary, target)
            flush_folder(os.path.dirname(target))
    except BaseException:
        if not is_device:
            with contextlib.suppress(OSError):
                os.remove(temporary)
        raise
