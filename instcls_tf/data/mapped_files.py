"""Files that are mapped into memory while they are filled: their place on the disk is theirs before. No TensorFlow."""

from __future__ import annotations

import math
import os

import numpy as np

from instcls_tf import stamps

_AT_ONCE = 2**30  # bytes


def reserve(descriptor: int, num_bytes: int) -> None:
    """Makes an open file as long as it is to be.

    A disk that is full only when a mapped page is written ends the process.

    Raises:
      OSError: there is no room for it.
    """
    for begin in range(0, num_bytes, _AT_ONCE):  # some file systems write it all, which takes its time
        os.posix_fallocate(descriptor, begin, min(_AT_ONCE, num_bytes - begin))
        stamps.go_on()


def new_pixels(path: str, shape: tuple[int, ...]) -> np.memmap:
    """A new file of zeros without a head, mapped to be filled, uint8.

    Raises:
      OSError: there is no room for it.
    """
    with open(path, "wb") as file:
        reserve(file.fileno(), math.prod(shape))
    return np.memmap(path, np.uint8, "r+", shape=shape)


def new_npy(path: str, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` file of zeros, mapped to be filled, float32.

    Raises:
      OSError: there is no room for it.
    """
    dtype = np.dtype(np.float32)
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        file.flush()
        reserve(file.fileno(), file.tell() + math.prod(shape) * dtype.itemsize)
    return np.lib.format.open_memmap(path, mode="r+")
