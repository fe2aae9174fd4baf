"""Images of more than 8 bits, and transparent ones. NumPy says what is right."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.data.pillow_reading import to_8_bits
from instcls_tf.data.sources import open_source
from tests.reading import decode, encode, png_of_16_bits

# ------------------------------------------------------------------------------------------------ more than 8 bits


def tiff_of(values: np.ndarray, order: str = "<", sample_format: int = 1) -> bytes:
    """`[H, W, C]` as an uncompressed TIFF; `sample_format` 1 unsigned, 2 signed, 3 floating."""
    height, width, channels = values.shape
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = 8 * values.dtype.itemsize
    many = 8 + len(pixels)  # Where the lists lie that do not fit into an entry.
    lists = struct.pack(f"{order}{channels}H", *[bits] * channels)
    lists += struct.pack(f"{order}{channels}H", *[sample_format] * channels)
    photometric = 1 if channels < 3 else 2

    def of_channels(tag: int, value: int, place: int) -> bytes:
        if channels == 1:
            return struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
        return struct.pack(f"{order}HHII", tag, 3, channels, place)

    entries = [
        struct.pack(f"{order}HHII", 256, 4, 1, width),
        struct.pack(f"{order}HHII", 257, 4, 1, height),
        of_channels(258, bits, many),
        struct.pack(f"{order}HHIHH", 259, 3, 1, 1, 0),
        struct.pack(f"{order}HHIHH", 262, 3, 1, photometric, 0),
        struct.pack(f"{order}HHII", 273, 4, 1, 8),
        struct.pack(f"{order}HHIHH", 277, 3, 1, channels, 0),
        struct.pack(f"{order}HHII", 278, 4, 1, height),
        struct.pack(f"{order}HHII", 279, 4, 1, len(pixels)),
        of_channels(339, sample_format, many + 2 * channels),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", many + len(lists))
    return head + pixels + lists + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM"])
def test_grey_is_scaled_by_the_bits_that_it_uses(kind, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (64, 96)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    if kind == "PGM":
        encoded = b"P5 96 64 65535\n" + values.astype(">u2").tobytes()
    else:
        encoded = encode(Image.fromarray(values), kind)
    expected = np.rint(values.astype(np.float64) * 255 / (2**bits - 1))
    np.testing.assert_array_equal(decode(encoded), np.repeat(expected[..., None], 3, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("make", ["PNG", "TIFF <", "TIFF >", "TIFF with LZW"])
def test_colours_are_scaled_by_the_bits_that_all_of_them_use(make, bits, tmp_path):
    values = np.random.default_rng(1).integers(0, 2**bits, (24, 36, 3)).astype(np.uint16)
    values[..., 2] //= 8  # A dark channel stays dark beside the others.
    values[0, 0, 0] = 2**bits - 1
    encoded = png_of_16_bits(values) if make == "PNG" else tiff_of(values, ">" if make == "TIFF >" else "<")
    if make == "TIFF with LZW":
        encoded = _compressed(encoded)
    expected = np.rint(values.astype(np.float64) * 255 / (2**bits - 1)).astype(np.uint8)
    np.testing.assert_array_equal(decode(encoded), expected)
    # From a file that is opened twice, as well as from bytes.
    for index in range(2):
        (tmp_path / f"{index}.{make[:3].lower().replace('tif', 'tiff')}").write_bytes(encoded)
    load = open_source(f"folder:{tmp_path}").loader()
    np.testing.assert_array_equal(load(tf.constant(1, tf.int64)), expected)


def _compressed(tiff: bytes) -> bytes:
    """An uncompressed 16-bit TIFF of one strip, its pixels deflated as Adobe does: libtiff decodes it then."""
    (directory,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, directory)
    entries = [list(struct.unpack_from("<HHII", tiff, directory + 2 + 12 * i)) for i in range(count)]
    strip = next(entry for entry in entries if entry[0] == 273)
    length = next(entry for entry in entries if entry[0] == 279)
    pixels = zlib.compress(tiff[strip[3] : strip[3] + length[3]])
    strip[3], length[3] = len(tiff), len(pixels)
    next(entry for entry in entries if entry[0] == 259)[3] = 8
    written = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return tiff[: directory + 2] + written + tiff[directory + 2 + len(written) :] + pixels


def test_fractions_are_read():
    random = np.random.default_rng(2)
    unit = random.random((16, 20, 1)).astype(np.float32)
    for values, top in ((unit, 1.0), (unit * 200 + 2, 255.0), (unit * 4000, 4095.0)):
        expected = np.rint(values.astype(np.float64) * 255 / top).astype(int)
        seen = decode(tiff_of(values, sample_format=3)).astype(int)
        np.testing.assert_allclose(seen, np.repeat(expected, 3, axis=-1), atol=1)
    holed = unit.copy()
    holed[0, 0], holed[0, 1] = np.nan, np.inf
    seen = decode(tiff_of(holed, sample_format=3))
    assert seen[0, 0, 0] == seen[0, 1, 0] == 0 and abs(int(seen[5, 5, 0]) - 255 * unit[5, 5, 0]) <= 1


def test_negative_numbers_use_the_whole_range():
    values = np.random.default_rng(3).integers(-1000, 3000, (16, 20, 1)).astype(np.int16)
    values[0, 0], values[0, 1] = -1000, 3000
    expected = np.rint((values.astype(np.float64) + 1000) * 255 / 4000).astype(np.uint8)
    np.testing.assert_array_equal(decode(tiff_of(values, sample_format=2)), np.repeat(expected, 3, axis=-1))


@pytest.mark.parametrize(
    ("highest", "top"),
    [(1, 255), (255, 255), (256, 1023), (1024, 4095), (4096, 16_383), (16_384, 65_535), (65_536, 2**24 - 1)],
)
def test_the_range_is_the_smallest_that_holds_all(highest, top):
    assert to_8_bits(np.array([0, highest])).tolist() == [0, round(highest * 255 / top)]


def test_what_is_black_stays_black():
    for values in (np.zeros([2, 2], np.uint16), np.zeros([2, 2], np.float32), np.full([2, 2], np.nan)):
        assert not to_8_bits(values).any()


# --------------------------------------------------------------------------------------------------- transparency

COLOUR, WHITE = np.array([200, 40, 90]), np.array([255, 255, 255])


def laid_on(background, colour, alpha) -> np.ndarray:
    return np.rint(background + (np.asarray(colour, float) - background) * np.asarray(alpha)[..., None] / 255)


@pytest.mark.parametrize(
    ("name", "background"),
    [("white", WHITE), ("black", [0, 0, 0]), ("grey", [128, 128, 128]), ("#10ff00", [16, 255, 0])],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "ICO"])
def test_transparency_is_laid_on_the_background(kind, name, background):
    alpha = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    pixels = np.concatenate([np.tile(COLOUR, (32, 32, 1)), alpha[..., None]], axis=-1).astype(np.uint8)
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    encoded = encode(Image.fromarray(pixels), kind, **options.get(kind, {}))
    expected = laid_on(np.array(background), COLOUR, alpha)
    assert np.abs(decode(encoded, background=name) - expected).max() <= (4 if kind == "AVIF" else 1)


def test_grey_with_alpha_is_laid_on_white():
    alpha = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (9, 1))
    pixels = np.stack([np.full_like(alpha, 60), alpha], axis=-1)
    seen = decode(encode(Image.fromarray(pixels, "LA"), "PNG"))
    assert np.abs(seen - laid_on(WHITE, [60] * 3, alpha)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_place_of_a_palette_is_white(kind):
    image = Image.new("P", (8, 6), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (4, 0, 8, 6))
    seen = decode(encode(image, kind, transparency=0))
    assert (seen[:, :4] == 255).all() and (seen[:, 4:] == (200, 100, 50)).all()
    assert (decode(encode(image, kind, transparency=0), background="black")[:, :4] == 0).all()


def test_a_palette_with_degrees_of_transparency():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    seen = decode(encode(image, "PNG", transparency=bytes([0, 128])))
    assert np.abs(seen[0] - laid_on(WHITE, [[10, 20, 30], [200, 100, 50]], [0, 128])).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_single_transparent_colour_is_white(mode):
    image = Image.new(mode, (8, 6), 77 if mode == "L" else (77, 77, 77))
    image.paste(30 if mode == "L" else (30, 30, 30), (4, 0, 8, 6))
    seen = decode(encode(image, "PNG", transparency=77 if mode == "L" else (77, 77, 77)))
    assert (seen[:, :4] == 255).all() and (seen[:, 4:] == 30).all()


def test_transparency_of_16_bits():
    random = np.random.default_rng(4)
    alpha = random.integers(0, 2**16, (12, 14))
    for channels in (1, 3):
        colours = random.integers(0, 2**16, (12, 14, channels))
        encoded = png_of_16_bits(np.concatenate([colours, alpha[..., None]], axis=-1).astype(np.uint16))
        colours = np.repeat(colours, 3 // channels, axis=-1)
        assert np.abs(decode(encoded) - laid_on(WHITE, colours / 257, alpha / 257)).max() <= 2
    grey = np.full([4, 4, 1], 60_000, np.uint16)
    grey[:, 2:] = 20_000
    seen = decode(png_of_16_bits(grey, transparent=struct.pack(">H", 20_000)), background="black")
    assert (seen[:, 2:] == 0).all() and (seen[:, :2] == round(60_000 / 257)).all()
    colours = np.repeat(grey, 3, axis=-1)
    seen = decode(png_of_16_bits(colours, transparent=struct.pack(">HHH", *[20_000] * 3)), background="black")
    assert (seen[:, 2:] == 0).all() and (seen[:, :2] == round(60_000 / 257)).all()
