"""What is wrong with a data set's image files by their headers, said before a detector is trained on the first of them.

Importing this does not import TensorFlow.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from instcls_tf.data.decoding import Reading
from instcls_tf.data.pillow_reading import UnreadableError, shown_size

# On a file system in a network, looking into a file is mostly waiting.
_AT_ONCE = 8


def problems_of_images(images: Iterable[tuple[str, int, int]], reading: Reading) -> list[str]:
    """Looks into the headers of image files; nothing is decoded but what only then says how it lies.

    Args:
      images: path, and the height and width that its annotation says.
      reading: what may be read.

    Returns:
      A sentence for each image that is no regular file, is not readable, is too large or has another size.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(filter(None, pool.map(lambda image: _problem(image, reading.max_pixels), images)))


def _problem(image: tuple[str, int, int], max_pixels: int) -> str:
    """What is wrong with one of them; nothing if it is fit."""
    path, height, width = image
    try:
        # Opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return f"{path}: not a regular file"
        with open(path, "rb") as file:
            shown, orientation = shown_size(file, max_pixels)
    except OSError as error:
        return f"{path}: cannot read this image ({error.strerror or error})"
    except UnreadableError as error:
        return f"{path}: cannot read this image ({error})"
    if shown == (height, width):
        return ""
    there, said = f"{shown[1]} x {shown[0]} pixels", f"but its annotation says {width} x {height}"
    if orientation >= 5 and shown == (width, height):
        return (
            f"{path}: is shown with {there} by its EXIF orientation, {orientation}, {said}: wanted size and boxes of"
            f" the image as it is shown"
        )
    return f"{path}: has {there}, {said}"
