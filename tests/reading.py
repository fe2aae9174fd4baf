"""Images encoded for tests, and what pipelines decode of them."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
import tensorflow as tf
from PIL import Image

from instcls_tf.data.decoding import BadImages, Reading, decode_image

MANY = 120_000_000

# EXIF 2.32, 4.6.4: where the first stored row and column lie in the image as it is shown.
SHOWN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def smooth(height: int = 40, width: int = 56) -> np.ndarray:
    """An image without any symmetry that lossy formats keep well."""
    down, right = np.mgrid[0:height, 0:width]
    return np.stack([down * 5, right * 4, (down + right) * 2], axis=-1).astype(np.uint8)


def encode(image: Image.Image, kind: str, orientation: int | None = None, **options) -> bytes:
    file = io.BytesIO()
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def decoder(reading: Reading):
    """`decode_image` as pipelines have it, inside a graph, and what it reports to."""
    bad = BadImages()

    @tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.string)])
    def decode_named(encoded, name):
        return decode_image(encoded, name, bad, reading)

    return decode_named, bad


def decoded_and_reason(encoded: bytes, reading: dict) -> tuple[np.ndarray, str | None]:
    decode_named, bad = decoder(Reading(**reading))
    name = f"image {len(bad.reasons)}"
    image = decode_named(tf.constant(encoded), tf.constant(name)).numpy()
    return image, bad.reasons.get(name)


def decode(encoded: bytes, **reading) -> np.ndarray:
    image, reason = decoded_and_reason(encoded, reading)
    assert reason is None and image.size
    return image


def refusal(encoded: bytes, **reading) -> str:
    image, reason = decoded_and_reason(encoded, reading)
    assert image.shape == (0, 0, 3)
    return reason


def png_of_16_bits(values: np.ndarray, exif: bytes = b"", transparent: bytes = b"") -> bytes:
    """`[H, W, C]` uint16 as PNG, which Pillow does not write for more than one channel."""
    height, width, channels = values.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    extra = (chunk(b"eXIf", exif) if exif else b"") + (chunk(b"tRNS", transparent) if transparent else b"")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
