"""The safetensors format: a header in JSON and the bytes of the arrays, read and written with NumPy alone.

Written here so that an export needs no further package; the library of that name reads it
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import struct
from typing import BinaryIO

import numpy as np

from instcls_tf.errors import UserError, shown
from instcls_tf.files import error_of

_NAMES = {"float32": "F32", "int64": "I64"}
# What other tools write as well.
_READ = {**_NAMES, "float64": "F64", "float16": "F16", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8"}
_TYPES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in _READ.items()}
_TYPES |= {"BOOL": np.dtype(bool), "BF16": np.dtype("<u2")}
_LARGEST_HEADER = 100_000_000  # the library's own limit


def write(path: str, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes arrays of float32 and int64.

    Args:
      path: the file.
      arrays: by name.
      metadata: texts by name, kept in the header.

    Raises:
      OSError: it cannot be written.
    """
    with open(path, "wb") as file:
        write_to(file, arrays, metadata)


def write_to(file: BinaryIO, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """`write` into an open file."""
    header: dict[str, object] = {"__metadata__": metadata}
    place = 0
    for name, array in arrays.items():
        end = place + array.nbytes
        header[name] = {"dtype": _NAMES[str(array.dtype)], "shape": list(array.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    file.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the texts of a file; bfloat16, which NumPy has not, as float32.

    Raises:
      UserError: it is damaged, or holds other types.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
            data = file.read()
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, about in header.items():
            begin, end = about["data_offsets"]
            if not 0 <= begin <= end <= len(data):
                raise ValueError(f"{name} lies outside of the file")
            array = np.frombuffer(data[begin:end], _TYPES[about["dtype"]]).reshape(about["shape"])
            arrays[name] = _widened(array) if about["dtype"] == "BF16" else array.copy()
        return arrays, metadata
    except OSError as error:
        raise error_of(error, f"{shown(path)}: cannot be read as safetensors ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{shown(path)}: cannot be read as safetensors ({error})") from error


def _widened(halves: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
