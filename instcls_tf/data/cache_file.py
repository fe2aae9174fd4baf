"""Pixels of many images in one file that is mapped into memory, by all workers of a machine. No TensorFlow.

A head of one page says what the file was made of; an index of 16 bytes an image follows, with its size in pixels and a
checksum; then the pixels of one image after the other, uint8 RGB. An image that could not be read is in the index, and
not kept.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from instcls_tf import files
from instcls_tf.checks import require_value
from instcls_tf.data.mapped_files import reserve
from instcls_tf.errors import UserError, shown

_MAGIC = b"instcls_tf cache of images\n"
_PAGE = 4096
_INDEX = np.dtype([("height", "<u4"), ("width", "<u4"), ("checksum", "<u4"), ("kept", "<u4")])
_CHANNELS = 3


class CacheFile:
    """A file of `count` images, mapped; its pixels can be used after `map_pixels`.

    Args:
      path: the file, which holds the index at least.
      count: N.
      writable: whether it is still being filled.

    Attributes:
      index: `[N]` of height, width, checksum and whether the image is kept.
    """

    def __init__(self, path: str, count: int, writable: bool = False):
        self._path = path
        self._mode: Literal["r", "r+"] = "r+" if writable else "r"
        self.index = np.memmap(path, _INDEX, self._mode, _PAGE, (count,))
        self._pixels: np.ndarray = np.zeros([0], np.uint8)
        self._begins = np.zeros([0], np.int64)

    @property
    def num_bytes(self) -> int:
        """Of the whole file, by the sizes in the index."""
        return _begin_of_pixels(len(self.index)) + int(self._lengths().sum())

    def _lengths(self) -> np.ndarray:
        return self.index["height"].astype(np.int64) * self.index["width"] * _CHANNELS

    def map_pixels(self) -> None:
        """Makes the pixels accessible; every size is in the index by now, and the file as long as that."""
        lengths = self._lengths()
        self._begins = np.cumsum(lengths) - lengths
        if lengths.sum():
            begin = _begin_of_pixels(len(self.index))
            self._pixels = np.memmap(self._path, np.uint8, self._mode, begin, (int(lengths.sum()),))

    def write(self, place: int, pixels: np.ndarray) -> None:
        """Keeps an image, uint8 `[H, W, 3]`; not if it is of another size than the index says."""
        record = self.index[place]
        if pixels.shape == (record["height"], record["width"], _CHANNELS) and pixels.size:
            begin = int(self._begins[place])
            self._pixels[begin : begin + pixels.size] = pixels.reshape(-1)
            self.index["checksum"][place] = zlib.crc32(pixels.data)
            self.index["kept"][place] = 1

    def read(self, place: int) -> np.ndarray:
        """A kept image, uint8 `[H, W, 3]`; a copy, because what reads it may write into it."""
        height, width = int(self.index["height"][place]), int(self.index["width"][place])
        begin = int(self._begins[place])
        return np.array(self._pixels[begin : begin + height * width * _CHANNELS]).reshape(height, width, _CHANNELS)

    def is_sound(self, place: int) -> bool:
        """Whether the pixels of an image are those that were written."""
        return not self.index["kept"][place] or zlib.crc32(self.read(place).data) == self.index["checksum"][place]

    def loader(self, load: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The loader of a source, which `load` is, called only for the images that are not kept."""
        import tensorflow as tf

        is_kept = tf.constant(self.index["kept"] != 0)

        def kept(instance_id: tf.Tensor) -> tf.Tensor:
            return tf.numpy_function(self.read, [instance_id], tf.uint8)

        def load_either(instance_id: tf.Tensor) -> tf.Tensor:
            image = tf.cond(is_kept[instance_id], lambda: kept(instance_id), lambda: load(instance_id))
            return tf.ensure_shape(image, [None, None, 3])

        return load_either


class Making:
    """A cache that one process makes for all of its machine: closed in the end, and taken away if it was not finished.

    Args:
      path: the file that it becomes; None for memory, which is given back when the last process that has it ends.
      count: N.

    Raises:
      UserError: the file cannot be written, or another process is making it.

    Attributes:
      path: by which processes of this machine open it until it is `finish`ed.
    """

    def __init__(self, path: str | None, count: int):
        self._final, self._count = path, count
        if path is None:
            self._descriptor = os.memfd_create("instcls_tf cache")
            self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        else:
            # Not the name itself before all of it is there; and one for each machine, where they share the disk.
            self.path = f"{os.path.realpath(path)}.{os.uname().nodename}.new"
            with _as_user_error(path):
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._descriptor = _opened_alone(self.path, path)
        with _as_user_error(path):
            os.truncate(self._descriptor, _begin_of_pixels(count))

    def room(self) -> int | None:
        """Free bytes of the disk; None for memory."""
        return None if self._final is None else shutil.disk_usage(os.path.dirname(self.path)).free

    def allocate(self, num_bytes: int) -> None:
        """Makes the file as long as it is to be.

        Raises:
          UserError: there is no room for it.
        """
        with _as_user_error(self._final):
            if self._final is None:
                os.truncate(self._descriptor, num_bytes)
            else:
                reserve(self._descriptor, num_bytes)

    def finish(self, cache: CacheFile, made_of: dict[str, str]) -> None:
        """Gives the filled file its head and its name.

        Raises:
          UserError: it cannot be written.
        """
        if self._final is None:
            return
        head = {"images": self._count, "bytes": cache.num_bytes, "index": zlib.crc32(cache.index.tobytes())}
        with _as_user_error(self._final):
            os.pwrite(self._descriptor, _MAGIC + json.dumps({**head, "made_of": made_of}).encode() + b"\n", 0)
            os.fsync(self._descriptor)
            _name(self.path, os.path.realpath(self._final))
            files.flush_folder(os.path.dirname(self.path))

    def __enter__(self) -> Making:
        return self

    def __exit__(self, *_: object) -> None:
        if self._final is not None:
            with contextlib.suppress(OSError):
                if _is_at(self._descriptor, self.path):
                    os.remove(self.path)
        os.close(self._descriptor)


def refuse_other_file(path: str, count: int, made_of: dict[str, str]) -> None:
    """Makes sure that a file is the whole cache of these very images; their pixels are looked at later.

    Args:
      path: the value of `--cache`.
      count: N.
      made_of: what the cache depends on, in words by what it is called.

    Raises:
      UserError: it is another file, is damaged, or holds other images.
    """
    try:
        with open(path, "rb") as file:
            first = file.read(_PAGE)
            size = os.fstat(file.fileno()).st_size
            checksum = zlib.crc32(file.read(_begin_of_pixels(count) - _PAGE)[: count * _INDEX.itemsize])
    except OSError as error:
        raise UserError(f"--cache={shown(path)}: cannot read this file ({error.strerror})") from error
    require_value("cache", path, first.startswith(_MAGIC), "`ram`, a cache of images, or a file that is not there yet")
    try:
        head: dict[str, Any] = json.loads(first[len(_MAGIC) :].rstrip(b"\0"))
        theirs = head["made_of"]
        is_whole = head["bytes"] == size and (head["images"] != count or head["index"] == checksum)
    except (ValueError, KeyError, TypeError):
        raise damaged(path) from None
    if not is_whole:
        raise damaged(path)
    for name, value in made_of.items():
        if theirs.get(name) != value:
            raise UserError(
                f"--cache={shown(path)}: was made of other {name} ({theirs.get(name)}, wanted {value}): remove it, or"
                f" name another file"
            )


def damaged(path: str) -> UserError:
    """The sentence about a file whose content is not what was written."""
    return UserError(f"--cache={shown(path)}: is damaged or cut off: remove it, and it is made anew")


def _begin_of_pixels(count: int) -> int:
    return _PAGE + -(-count * _INDEX.itemsize // _PAGE) * _PAGE


def _name(path: str, final: str) -> None:
    """Gives a whole file its name, unless another machine's, made of the same, has it already."""
    try:
        os.link(path, final)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(path, final)


def _is_at(descriptor: int, path: str) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _opened_alone(path: str, wanted: str) -> int:
    """An empty file that is this process's until it closes it."""
    while True:
        with _as_user_error(wanted):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # others: a file system without locks
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise UserError(
                    f"--cache={shown(wanted)}: another run is making it: wait until it has, or name another file"
                ) from None
        if _is_at(descriptor, path):  # else its owner was done with it, and gave it its name, between the two calls
            os.truncate(descriptor, 0)
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def _as_user_error(path: str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--cache={shown(path or 'ram')}: cannot be written ({error.strerror})") from error
