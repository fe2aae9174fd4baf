"""Encoded bytes to pixels, in a graph, without an error: what cannot be read becomes an empty image and is reported.

TensorFlow decodes JPEG and PNG of 8 bits without transparency, which nearly all images are. The rest goes through
Pillow, in Python (`pillow_reading`), and so does what TensorFlow refuses: broken files, which only then cost more time.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import stat
import threading
from typing import Any, BinaryIO

import numpy as np

from instcls_tf import files
from instcls_tf.checks import background_colour
from instcls_tf.config import PretrainConfig
from instcls_tf.data.image_header import plain_orientation
from instcls_tf.errors import MachineError

# A JPEG's headers nearly always end before; if not, Pillow reads the image.
_HEAD_BYTES = 2**16
# Other files are left to Pillow, which opens them without reading all of their bytes.
_FAST_NAMES = r"(?i).*\.(jpe?g|jpe|jfif|jif|jfi|pjpeg|pjp|png)"


@dataclasses.dataclass(frozen=True)
class Reading:
    """How encoded images become pixels; part of a run's recipe.

    Attributes:
      max_pixels: an image whose header declares more is not decoded.
      background: beneath what is transparent, as `checks.background_colour` takes it.
    """

    max_pixels: int = PretrainConfig.max_pixels
    background: str = PretrainConfig.background

    def __post_init__(self) -> None:
        background_colour(self.background)


DEFAULT_READING = Reading()


def reading_of(config: PretrainConfig) -> Reading:
    """How the images of a recipe are read."""
    return Reading(config.max_pixels, config.background)


# Why an image cannot be read that may be sound: after some patience, of which others may need more.
FAILED = "the file system fails"


class BadImages:
    """The images of a source that could not be read so far, in this process; filled by the threads of a pipeline.

    Attributes:
      reasons: why, by the image's name.
      damage: sentences about record files that hold less than they should, by path.
      is_of_machine: whether one of them is there whole after all, and the file system has failed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: dict[str, str] = {}
        self._damage: dict[str, str] = {}
        self.is_of_machine = False

    def add(self, name: str, reason: str) -> None:
        """Reports an image; once is enough, however often it is met."""
        with self._lock:
            self._reasons[name] = reason

    def add_damage(self, path: str, sentence: str, is_of_machine: bool = False) -> None:
        """Reports a record file."""
        with self._lock:
            self._damage[path] = sentence
            self.is_of_machine |= is_of_machine

    @property
    def reasons(self) -> dict[str, str]:
        with self._lock:
            return dict(self._reasons)

    @property
    def damage(self) -> dict[str, str]:
        with self._lock:
            return dict(self._damage)


def decode_image(encoded: Any, name: Any, bad: BadImages | None = None, reading: Reading = DEFAULT_READING) -> Any:
    """Decodes an image, of several in a file the first, to 8-bit RGB, upright.

    Args:
      encoded: string scalar, the file's bytes.
      name: string scalar, for the report.
      bad: told of an image that cannot be decoded, and why.
      reading: how.

    Returns:
      uint8 `[H, W, 3]`, as viewers show it; `[0, 0, 3]` if it cannot be decoded. Greyscale is repeated, more than 8
      bits are scaled by the range that is used, transparency is laid on the background.
    """
    first = functools.partial(_decode, reading=reading)
    return _first_or_second_try(first, encoded, functools.partial(_decode_slowly, bad, reading), [encoded, name])


def decode_file(path: Any, name: Any, bad: BadImages | None = None, reading: Reading = DEFAULT_READING) -> Any:
    """Reads and decodes a file, see `decode_image`.

    Args:
      path: string scalar; empty for what must not be opened in the ordinary way.
      name: string scalar, the path for the report and for the second try.
      bad: told of a file that cannot be read.
      reading: how.
    """
    import tensorflow as tf

    def read(path: tf.Tensor) -> tf.Tensor:
        is_fast = tf.strings.regex_full_match(path, _FAST_NAMES)
        return tf.cond(is_fast, lambda: _decode(tf.io.read_file(path), reading), _nothing)

    return _first_or_second_try(read, path, functools.partial(_read_slowly, bad, reading), [name])


def _nothing() -> Any:
    import tensorflow as tf

    return tf.zeros([0, 0, 3], tf.uint8)


def _first_or_second_try(first: Any, key: Any, second: Any, arguments: list) -> Any:
    import tensorflow as tf

    # A nested dataset is the one way to catch a decoder's error inside a graph.
    tried = tf.data.Dataset.from_tensors(key).map(first).ignore_errors()
    image = tried.concatenate(tf.data.Dataset.from_tensors(_nothing())).take(1).get_single_element()
    image = tf.cond(tf.size(image) > 0, lambda: image, lambda: tf.numpy_function(second, arguments, tf.uint8))
    return tf.ensure_shape(image, [None, None, 3])


def _decode(encoded: Any, reading: Reading) -> Any:
    """What TensorFlow decodes as it is meant; of all else, an empty image."""
    import tensorflow as tf

    def look(head: bytes | np.ndarray) -> np.ndarray:
        return np.array(plain_orientation(_as_bytes(head), reading.max_pixels), np.int32)

    def plain() -> tf.Tensor:
        # Not decode_and_crop_jpeg: it takes a truncated file for a whole one.
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return _turn_upright(tf.ensure_shape(image, [None, None, 3]), orientation)

    is_png = tf.equal(tf.strings.substr(encoded, 0, 1), b"\x89")
    length = tf.where(is_png, tf.strings.length(encoded), _HEAD_BYTES)
    orientation = tf.ensure_shape(tf.numpy_function(look, [tf.strings.substr(encoded, 0, length)], tf.int32), [])
    return tf.ensure_shape(tf.cond(orientation > 0, plain, _nothing), [None, None, 3])


def _turn_upright(image: Any, orientation: Any) -> Any:
    """`pillow_reading.turn_upright` in a graph."""
    import tensorflow as tf

    def turned() -> tf.Tensor:
        pixels = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        rows = tf.reduce_any(orientation == [3, 4, 7, 8])
        pixels = tf.cond(rows, lambda: tf.reverse(pixels, [0]), lambda: pixels)
        columns = tf.reduce_any(orientation == [2, 3, 6, 7])
        return tf.cond(columns, lambda: tf.reverse(pixels, [1]), lambda: pixels)

    return tf.cond(orientation > 1, turned, lambda: image)


def _read_slowly(bad: BadImages | None, reading: Reading, path: bytes | np.ndarray) -> np.ndarray:
    path = _as_bytes(path)
    try:
        name = os.fsdecode(path)
        # Opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(files.patiently(lambda: os.stat(path), name).st_mode):
            return _give_up(bad, path, "not a regular file")
        return _read_with_pillow(io.BytesIO(files.content_of(name)), path, bad, reading)
    except MachineError:
        return _give_up(bad, path, FAILED)
    except OSError as error:
        return _give_up(bad, path, (error.strerror or str(error)).lower())


def _decode_slowly(
    bad: BadImages | None, reading: Reading, encoded: bytes | np.ndarray, name: bytes | np.ndarray
) -> np.ndarray:
    return _read_with_pillow(io.BytesIO(_as_bytes(encoded)), _as_bytes(name), bad, reading)


def _read_with_pillow(file: BinaryIO, name: bytes, bad: BadImages | None, reading: Reading) -> np.ndarray:
    from instcls_tf.data import pillow_reading

    try:
        return pillow_reading.read_upright(file, reading.max_pixels, background_colour(reading.background))
    except pillow_reading.UnreadableError as error:
        return _give_up(bad, name, str(error))


def _as_bytes(text: bytes | np.ndarray) -> bytes:
    # Outside a graph, TensorFlow hands strings over as arrays of one object.
    return text.item() if isinstance(text, np.ndarray) else text


def _give_up(bad: BadImages | None, name: bytes, reason: str) -> np.ndarray:
    if bad is not None and name:
        bad.add(os.fsdecode(name), reason)
    return np.zeros([0, 0, 3], np.uint8)
