"""Encoded bytes to pixels, in a graph, without an error: what cannot be read becomes an empty image and is reported.

TensorFlow decodes JPEG, PNG, BMP and GIF. What it refuses goes once more through Pillow, in Python: WebP, rare kinds of
the others, and broken files, which only then cost more time than the rest.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import threading
import warnings
from typing import Any

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class BadImages:
    """The images of a source that could not be read so far, in this process; filled by the threads of a pipeline.

    Attributes:
      reasons: why, by the image's name.
      damage: sentences about record files that hold less than they should, by path.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: dict[str, str] = {}
        self._damage: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        """Reports an image; once is enough, however often it is met."""
        with self._lock:
            self._reasons[name] = reason

    def add_damage(self, path: str, sentence: str) -> None:
        """Reports a record file."""
        with self._lock:
            self._damage[path] = sentence

    @property
    def reasons(self) -> dict[str, str]:
        with self._lock:
            return dict(self._reasons)

    @property
    def damage(self) -> dict[str, str]:
        with self._lock:
            return dict(self._damage)


def decode_image(encoded: Any, name: Any, bad: BadImages | None = None) -> Any:
    """Decodes JPEG, PNG, WebP, BMP or the first frame of a GIF to RGB.

    Args:
      encoded: string scalar, the file's bytes.
      name: string scalar, for the report.
      bad: told of an image that cannot be decoded, and why.

    Returns:
      uint8 `[H, W, 3]`; `[0, 0, 3]` if it cannot be decoded. Greyscale is repeated, an alpha channel dropped.
    """
    return _first_or_second_try(_decode, encoded, functools.partial(_decode_slowly, bad), [encoded, name])


def decode_file(path: Any, name: Any, bad: BadImages | None = None) -> Any:
    """Reads and decodes a file, see `decode_image`.

    Args:
      path: string scalar; empty for what must not be opened in the ordinary way.
      name: string scalar, the path for the report and for the second try.
      bad: told of a file that cannot be read.
    """
    import tensorflow as tf

    def read(path: tf.Tensor) -> tf.Tensor:
        return _decode(tf.io.read_file(path))

    return _first_or_second_try(read, path, functools.partial(_read_slowly, bad), [name])


def _first_or_second_try(first: Any, key: Any, second: Any, arguments: list) -> Any:
    import tensorflow as tf

    nothing = tf.data.Dataset.from_tensors(tf.zeros([0, 0, 3], tf.uint8))
    # A nested dataset is the one way to catch a decoder's error inside a graph.
    tried = tf.data.Dataset.from_tensors(key).map(first).ignore_errors()
    image = tried.concatenate(nothing).take(1).get_single_element()
    image = tf.cond(tf.size(image) > 0, lambda: image, lambda: tf.numpy_function(second, arguments, tf.uint8))
    return tf.ensure_shape(image, [None, None, 3])


def _decode(encoded: Any) -> Any:
    import tensorflow as tf

    def bmp() -> tf.Tensor:  # Unlike the others, the BMP decoder refuses to convert channels.
        image = tf.image.decode_bmp(encoded)
        return tf.cond(tf.shape(image)[-1] < 3, lambda: tf.repeat(image, 3, -1), lambda: image[..., :3])

    def other() -> tf.Tensor:
        # Not decode_and_crop_jpeg: it takes a truncated file for a whole one.
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    image = tf.cond(tf.equal(tf.strings.substr(encoded, 0, 2), "BM"), bmp, other)
    return tf.ensure_shape(image, [None, None, 3])


def _read_slowly(bad: BadImages | None, path: bytes | np.ndarray) -> np.ndarray:
    path = _as_bytes(path)
    try:
        # Opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return _give_up(bad, path, "not a regular file")
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        return _give_up(bad, path, (error.strerror or str(error)).lower())
    return _decode_slowly(bad, encoded, path)


def _decode_slowly(bad: BadImages | None, encoded: bytes | np.ndarray, name: bytes | np.ndarray) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    encoded, name = _as_bytes(encoded), _as_bytes(name)
    if not encoded:
        return _give_up(bad, name, "empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                image.load()
                if image.mode.startswith("I"):  # 16 bits, of which Pillow's conversion would keep the lower ones.
                    grey = np.asarray(image).astype(np.int64) >> 8
                    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
                return np.ascontiguousarray(image.convert("RGB"))
    except UnidentifiedImageError:
        return _give_up(bad, name, "not an image")
    # Pillow's plugins raise almost anything on damaged data.
    except Exception as error:
        return _give_up(bad, name, " ".join(str(error).split()) or type(error).__name__)


def _as_bytes(text: bytes | np.ndarray) -> bytes:
    # Outside a graph, TensorFlow hands strings over as arrays of one object.
    return text.item() if isinstance(text, np.ndarray) else text


def _give_up(bad: BadImages | None, name: bytes, reason: str) -> np.ndarray:
    if bad is not None and name:
        bad.add(os.fsdecode(name), reason)
    return np.zeros([0, 0, 3], np.uint8)
