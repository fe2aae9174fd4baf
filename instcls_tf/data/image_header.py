"""What the first bytes of a JPEG or PNG file say about its pixels: read in microseconds, before anything is decoded."""

from __future__ import annotations

import re
import struct

UPRIGHT = 1
# EXIF's orientations: how the stored pixels lie is told by numbers from 1, upright, to 8.
ORIENTATIONS = range(1, 9)
ORIENTATION_TAG = 0x0112
_NOT_PLAIN = 0
_SHORT = 3  # TIFF's type of a two-byte number.
# Frame headers of all kinds of JPEG; 0xC4, 0xC8 and 0xCC lie between them and mean something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)[2-8]')
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that change what is shown: transparency of single colours, EXIF, and texts that may hold EXIF or XMP.
_PNG_TRANSPARENCY, _PNG_EXIF, _PNG_TEXTS = b"tRNS", b"eXIf", (b"tEXt", b"zTXt", b"iTXt")
_PNG_METADATA = (b"Raw profile type ", b"XML:com.adobe.xmp")
_PNG_ALPHA = 4  # A bit of the colour type.


def plain_orientation(data: bytes, max_pixels: int) -> int:
    """Whether TensorFlow's decoder gives an image's right pixels, and how these lie.

    Args:
      data: a file's first bytes; of a PNG, all of them.
      max_pixels: the most that may be decoded.

    Returns:
      EXIF's orientation, 1 to 8, of a JPEG or PNG of 8 bits, opaque, of a known size and at most `max_pixels`; 0 for
      everything else, which a slower reader looks at more closely.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _of_jpeg(data, max_pixels)
        if data[:8] == PNG_SIGNATURE:
            return UPRIGHT if _is_plain_png(data, max_pixels) else _NOT_PLAIN
    except struct.error:  # The bytes end inside a header.
        pass
    return _NOT_PLAIN


def _of_jpeg(data: bytes, max_pixels: int) -> int:
    """Follows the segments to the first scan; every one of them but markers says how long it is."""
    place, orientation, fits = 2, None, False
    while True:
        filler, marker, length = struct.unpack_from(">BBH", data, place)
        if filler != 0xFF:
            return _NOT_PLAIN
        if marker == 0xFF:  # Any number of these may stand before a marker.
            place += 1
            continue
        if marker == _START_OF_SCAN:
            return (orientation or UPRIGHT) if fits else _NOT_PLAIN
        if marker in _FRAMES:
            depth, height, width = struct.unpack_from(">BHH", data, place + 4)
            fits = depth == 8 and 0 < height * width <= max_pixels
            if not fits:
                return _NOT_PLAIN
        elif marker == _APP1 and orientation is None:
            content = data[place + 4 : place + 2 + length]
            if content.startswith(b"Exif\0\0"):
                orientation = exif_orientation(content[6:])
                if orientation == _NOT_PLAIN:
                    return _NOT_PLAIN
            elif _XMP_ORIENTATION.search(content):
                return _NOT_PLAIN
        place += 2 + length


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in a block of EXIF, which has the form of a TIFF file; None if it has none, or an unknown one.

    0 if it is not the one two-byte number that it is to be: a slower reader may understand it.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, directory + 2 + 12 * entry)
            if tag == ORIENTATION_TAG and (kind, count) != (_SHORT, 1):
                return _NOT_PLAIN
            if tag == ORIENTATION_TAG:
                return value if value in ORIENTATIONS else None
    except struct.error:  # Cut off, or a number that points outside.
        pass
    return None


def _is_plain_png(data: bytes, max_pixels: int) -> bool:
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    if depth > 8 or colour_type & _PNG_ALPHA or not 0 < height * width <= max_pixels:
        return False
    place = len(PNG_SIGNATURE)
    while True:  # EXIF may follow the pixels.
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind in (_PNG_TRANSPARENCY, _PNG_EXIF):
            return False
        if kind in _PNG_TEXTS and data.startswith(_PNG_METADATA, place + 8):
            return False
        if kind == b"IEND":
            return True
        place += 12 + length
