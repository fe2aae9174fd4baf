"""Images as Pillow reads them, whatever their kind, made 8-bit RGB and upright: what TensorFlow's decoders cannot do.

Numbers of more than 8 bits rarely use all of them: 12-bit sensors and microscopes write 16-bit files. They are divided
by the range that the file really uses, see `to_8_bits`. What is transparent is laid on a background.
"""

from __future__ import annotations

import contextlib
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from instcls_tf.config import LARGEST_MAX_PIXELS
from instcls_tf.data.image_header import ORIENTATION_TAG, ORIENTATIONS, PNG_SIGNATURE, UPRIGHT, plain_orientation

# Known by their first bytes alone, and decoded by Pillow itself: EPS, for one, would start another program.
_WANTED_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "QOI", "PSD"),
    "MPO",  # what "JPEG" turns into where a file holds several
)
Image.init()
_FORMATS = tuple(name for name in _WANTED_FORMATS if name in Image.OPEN)
# Pillow's remarks on odd files; what it cannot read it raises.
warnings.filterwarnings("ignore", module=r"PIL\.")

_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_BITS = (8, 10, 12, 14, 16, 24, 32)
# In Pillow's names of pixels of 16 bits: the one that takes the other byte of each number, the lower one.
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_SIXTEEN_BITS = re.compile(r"(RGB|RGBA|RGBX|LA);16([LBN])")


class UnreadableError(Exception):
    """An image that cannot, or must not, be decoded; the message is the reason."""


def read_upright(file: BinaryIO, max_pixels: int, background: tuple[int, int, int]) -> np.ndarray:
    """Decodes an image, of several the first.

    Args:
      file: at its beginning.
      max_pixels: an image whose header declares more is not decoded.
      background: the colour beneath what is transparent.

    Returns:
      uint8 `[H, W, 3]`, as viewers show it.

    Raises:
      UnreadableError: with the reason.
    """
    with _opened(file, max_pixels) as image:
        sixteen_bits = _sixteen_bits(image)
        image.load()
        orientation = _orientation(image)
        pixels: Image.Image = image
        if sixteen_bits:
            pixels = _of_numbers(_both_bytes(image, file, sixteen_bits), image.info.get("transparency"))
        elif image.mode.startswith(("I", "F")):
            pixels = _of_numbers(_from_black(image)[..., None], image.info.get("transparency"))
        return turn_upright(np.asarray(_opaque(pixels, background)), orientation)


def shown_size(file: BinaryIO, max_pixels: int = LARGEST_MAX_PIXELS) -> tuple[tuple[int, int], int]:
    """`((height, width), orientation)` of an image as viewers show it.

    Pixels are decoded only where Pillow does so to say how they lie: of PNG files with alpha, EXIF or texts.

    Args:
      file: at its beginning.
      max_pixels: an image whose header declares more is refused.

    Raises:
      UnreadableError: with the reason.
    """
    with _opened(file, max_pixels) as image:
        (width, height), is_tiff = image.size, image.format == "TIFF"
        orientation = 0
        if image.format == "PNG":
            place = file.tell()
            file.seek(0)
            orientation = plain_orientation(file.read(), max_pixels)
            file.seek(place)
        orientation = orientation or _orientation(image)
    # Of a TIFF, Pillow itself tells the shown size.
    return ((width, height) if orientation >= 5 and not is_tiff else (height, width)), orientation


@contextlib.contextmanager
def _opened(file: BinaryIO, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """An image that may be decoded; what goes wrong with it inside is an UnreadableError with the reason."""
    if not file.read(1):
        raise UnreadableError("empty")
    file.seek(0)
    try:
        _refuse_large(_size_before_opening(file), max_pixels)
        with Image.open(file, formats=_FORMATS) as image:
            _refuse_large(image.size, max_pixels)
            yield image
    except UnreadableError:
        raise
    except Image.DecompressionBombError as error:
        declared = re.search(r"\d+ pixels", str(error))
        raise UnreadableError(f"{declared[0] if declared else error}, more than --max_pixels={max_pixels}") from error
    except UnidentifiedImageError as error:
        raise UnreadableError("not an image") from error
    # Pillow's plugins raise almost anything on damaged data.
    except Exception as error:
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels `[H, W, ...]` as EXIF's `orientation` says that they are to be shown."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _from_black(image: ImageFile.ImageFile) -> np.ndarray:
    """The numbers of a loaded image, `[H, W]`, black below white: of a TIFF of 16 bits Pillow leaves this to us."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return np.uint16(_largest_of(float(values.max()))) - values
    return values


def _largest_of(highest: float) -> float:
    """The largest number of the fewest bits that hold `highest`."""
    return next((2.0**bits - 1 for bits in _BITS if highest < 2**bits), highest)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Numbers of any kind as uint8, by the range that they really use.

    Whole numbers, and fractions above 1, are divided by the largest number of the fewest bits, of 8, 10, 12, 14, 16, 24
    and 32, that hold all of them; fractions that do not exceed 1 are taken as they are. If there are negative ones, the
    smallest becomes 0 and the largest 255. What is not finite becomes 0.
    """
    is_fraction = np.issubdtype(values.dtype, np.floating)
    if is_fraction:
        values = np.where(np.isfinite(values), values, 0)
    lowest, highest = float(min(values.min(), 0)), float(values.max())
    if lowest < 0:
        top = highest - lowest
    elif is_fraction and highest <= 1:
        top = 1.0
    else:
        top = _largest_of(highest)
    return np.rint((values.astype(np.float32) - lowest) * (255.0 / (top or 1.0))).clip(0, 255).astype(np.uint8)


def _refuse_large(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UnreadableError(f"{width} x {height} pixels, more than --max_pixels={max_pixels}")


def _size_before_opening(file: BinaryIO) -> tuple[int, int]:
    """The width and height of what Pillow allocates pixels for while it opens the file, and (0, 0) of the rest."""
    head, size = file.read(10), (0, 0)
    if head[:3] == b"GIF":
        size = struct.unpack("<HH", head[6:10])
    elif head[:4] == b"\0\0\1\0":  # An icon is one or several PNG or BMP files; the list in front may say anything.
        file.seek(6)
        entries = [file.read(16) for _ in range(int.from_bytes(head[4:6], "little"))]
        size = max((_size_in_icon(file, entry) for entry in entries), key=lambda size: size[0] * size[1])
    file.seek(0)
    return size


def _size_in_icon(file: BinaryIO, entry: bytes) -> tuple[int, int]:
    (offset,) = struct.unpack_from("<I", entry, 12)
    file.seek(offset)
    inner = file.read(24)
    if inner.startswith(PNG_SIGNATURE):
        return struct.unpack_from(">II", inner, 16)
    width, height = struct.unpack_from("<ii", inner, 4)
    return width, abs(height) // 2  # The second half is the mask.


def _orientation(image: Image.Image) -> int:
    try:
        value = int(image.getexif().get(ORIENTATION_TAG, UPRIGHT))
    # Damaged EXIF is no reason to do without the image.
    except Exception:
        return UPRIGHT
    return value if value in ORIENTATIONS else UPRIGHT


def _sixteen_bits(image: ImageFile.ImageFile) -> re.Match | None:
    """How 16-bit colours lie in a file, of which Pillow keeps the upper byte."""
    arguments = image.tile[0].args if image.tile else None
    name = arguments[0] if isinstance(arguments, tuple) else arguments
    return _SIXTEEN_BITS.fullmatch(name) if isinstance(name, str) else None


def _both_bytes(upper: Image.Image, file: BinaryIO, sixteen_bits: re.Match) -> np.ndarray:
    """The 16-bit colours of a loaded image, uint16 `[H, W, C]`: it is decoded again, for the lower bytes."""
    kind, order = sixteen_bits.groups()
    # Grey and alpha of 16 bits are as long as four colours of 8.
    name = "RGBA" if kind == "LA" else f"{kind};16{_OTHER_BYTE[order]}"
    file.seek(0)
    with Image.open(file, formats=_FORMATS) as again:
        again.tile = [
            tile._replace(args=(name, *tile.args[1:]) if isinstance(tile.args, tuple) else name) for tile in again.tile
        ]
        again.load()
        second = np.asarray(again).astype(np.uint16)
    if kind == "LA":
        return second[..., 0::2] << 8 | second[..., 1::2]
    return np.asarray(upper).astype(np.uint16) << 8 | second


def _of_numbers(values: np.ndarray, transparent: int | tuple[int, ...] | None) -> Image.Image:
    """`[H, W, C]` of 1 to 4 channels, the second or fourth of which is alpha; `transparent` is a colour that is."""
    channels = values.shape[-1]
    if channels in (2, 4):
        values, alpha = values[..., :-1], to_8_bits(values[..., -1:])
    elif transparent is not None:
        alpha = np.where((values == np.array(transparent)).all(axis=-1, keepdims=True), 0, 255).astype(np.uint8)
    else:
        alpha = None
    colours = to_8_bits(values)
    colours = np.repeat(colours, 3, axis=-1) if colours.shape[-1] == 1 else colours
    return Image.fromarray(colours if alpha is None else np.concatenate([colours, alpha], axis=-1))


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas
