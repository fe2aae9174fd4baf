"""Images as people have them: turned. NumPy says what is right."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from instcls_tf.data import image_header
from instcls_tf.data.pillow_reading import shown_size
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source
from tests.reading import MANY, SHOWN, decode, encode, png_of_16_bits, smooth

# ------------------------------------------------------------------------------------------------- EXIF's orientation


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 97, "subsampling": 0}, 4),
        ("WEBP", {"lossless": True}, 0),
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 4),
    ],
    ids=["JPEG", "WebP", "PNG", "TIFF", "TIFF with LZW", "AVIF"],
)
def test_every_orientation_is_shown_upright(kind, options, tolerance):
    stored = smooth()
    for orientation, show in SHOWN.items():
        seen = decode(encode(Image.fromarray(stored), kind, orientation, **options)).astype(int)
        expected = show(stored)
        assert seen.shape == expected.shape, orientation
        assert np.abs(seen - expected).max() <= tolerance, orientation


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "16 bits RGB"])
def test_rare_pixels_are_turned_too(mode):
    if mode == "16 bits RGB":
        stored = smooth()
        encoded = png_of_16_bits(stored.astype(np.uint16) * 257, exif=exif_block(8))
    elif mode == "I;16":
        stored = np.repeat(smooth()[..., :1], 3, axis=-1)
        encoded = encode(Image.fromarray(stored[..., 0].astype(np.uint16) * 257), "PNG", 8)
    else:
        image = Image.fromarray(smooth()).convert(mode)
        stored, encoded = np.asarray(image.convert("RGB")), encode(image, "PNG", 8)
    np.testing.assert_array_equal(decode(encoded), np.rot90(stored, 1))


@pytest.mark.parametrize("bits", [12, 16])
def test_16_bits_with_white_as_zero(bits):
    """As an X-ray has them: the negative of the same numbers with black as zero."""
    top = 2**bits - 1
    numbers = np.rint(np.linspace(0, top, 8 * 9)).astype(np.uint16).reshape(8, 9)
    shown = decode(encode(Image.fromarray(numbers), "TIFF"))
    assert (shown[0, 0, 0], shown[-1, -1, 0]) == (0, 255)
    negative = encode(Image.fromarray(top - numbers), "TIFF", tiffinfo={262: 0})
    with Image.open(io.BytesIO(negative)) as image:
        assert (image.mode, image.tag_v2[262]) == ("I;16", 0)
    np.testing.assert_array_equal(decode(negative), shown)


# TIFF's types of whole numbers, and how Python packs them.
TYPES = {"BYTE": (1, "B"), "SHORT": (3, "H"), "LONG": (4, "I"), "SSHORT": (8, "h"), "SLONG": (9, "i")}


def exif_block(orientation: int, order: str = "<", before: int = 3, kind: str = "SHORT", count: int = 1) -> bytes:
    """EXIF as cameras write it, with other entries before the orientation."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x010E + i, 4, 1, 7) for i in range(before)]
    directory = struct.pack(f"{order}H", before + 1) + b"".join(struct.pack(f"{order}HHII", *e) for e in entries)
    number, letter = TYPES[kind]
    values = struct.pack(f"{order}{count}{letter}", *[orientation] * count).ljust(4, b"\0")
    directory += struct.pack(f"{order}HHI", 0x0112, number, count) + values + bytes(4)
    return head + struct.pack(f"{order}I", 8) + directory


def with_segments(jpeg: bytes, *segments: tuple[int, bytes], at: int = 2) -> bytes:
    inserted = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return jpeg[:at] + inserted + jpeg[at:]


XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="8"/>'


@pytest.mark.parametrize(
    ("segments", "orientation"),
    [
        ([(0xE1, b"Exif\0\0" + exif_block(6, ">"))], 6),
        ([(0xE2, bytes(3000)), (0xFE, b"a comment"), (0xE1, b"Exif\0\0" + exif_block(6))], 6),
        ([(0xE2, bytes(65_000)), (0xE1, b"Exif\0\0" + exif_block(6) + bytes(60_000)), (0xE2, bytes(65_000))], 6),
        ([(0xE1, XMP)], 8),
        ([(0xE1, XMP), (0xE1, b"Exif\0\0" + exif_block(6))], 6),
        ([(0xE1, b"Exif\0\0" + exif_block(1)), (0xE1, XMP)], 1),
        ([(0xE1, b"Exif\0\0" + exif_block(9))], 1),
        ([(0xE1, b"Exif\0\0" + exif_block(6)[:30])], 1),
        ([(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f")], 1),
        ([(0xE1, b"Exif\0\0nonsense")], 1),
        ([(0xE1, b"")], 1),
    ],
    ids=[
        "Motorola's order",
        "after other segments",
        "beyond the first 64 KiB",
        "in XMP alone",
        "XMP first, EXIF counts",
        "EXIF counts, XMP second",
        "no such orientation",
        "cut off",
        "a directory outside",
        "nonsense",
        "an empty segment",
    ],
)
def test_where_a_jpeg_says_how_it_lies(segments, orientation):
    plain = encode(Image.fromarray(smooth()), "JPEG", quality=97, subsampling=0)
    encoded = with_segments(plain, *segments)
    seen = decode(encoded).astype(int)
    expected = SHOWN[orientation](smooth())
    assert seen.shape == expected.shape and np.abs(seen - expected).max() <= 4
    assert shown_size(io.BytesIO(encoded))[0] == expected.shape[:2]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "count"), [*((kind, 1) for kind in TYPES), ("SHORT", 2), ("SHORT", 0), ("BYTE", 4)])
def test_an_orientation_of_another_type_is_what_pillow_takes_it_for(order, kind, count):
    exif = exif_block(6, order, kind=kind, count=count)
    encoded = with_segments(encode(Image.fromarray(smooth()), "JPEG", quality=97), (0xE1, b"Exif\0\0" + exif))
    shape, orientation = shown_size(io.BytesIO(encoded))
    assert decode(encoded).shape[:2] == shape
    assert image_header.plain_orientation(encoded, MANY) == (orientation if (kind, count) == ("SHORT", 1) else 0)
    if kind in ("SHORT", "LONG") and count == 1:
        assert orientation == 6, "as viewers show it"


def test_the_fast_way_is_taken_by_what_it_suits():
    photo = Image.fromarray(smooth())
    for orientation in SHOWN:
        assert image_header.plain_orientation(encode(photo, "JPEG", orientation), MANY) == orientation
    for plain in (
        encode(photo, "JPEG"),
        encode(photo, "JPEG", progressive=True),
        encode(photo.convert("L"), "JPEG"),
        encode(photo, "PNG"),
        encode(photo.convert("P"), "PNG"),
        encode(photo.convert("1"), "PNG"),
    ):
        assert image_header.plain_orientation(plain, MANY) == 1
    for rare in (
        encode(photo.convert("RGBA"), "PNG"),
        encode(photo, "PNG", 1),
        encode(photo, "WEBP"),
        encode(photo, "JPEG")[:100],
        encode(photo, "PNG")[:-20],
        b"",
        b"\xff\xd8",
    ):
        assert image_header.plain_orientation(rare, MANY) == 0


def test_exif_behind_the_pixels_of_a_png_counts():
    png = encode(Image.fromarray(smooth()), "PNG")
    body = exif_block(6)
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    np.testing.assert_array_equal(decode(png[:-12] + chunk + png[-12:]), SHOWN[6](smooth()))


def test_exif_in_a_text_of_a_png_counts():
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    np.testing.assert_array_equal(decode(encode(Image.fromarray(smooth()), "PNG", pnginfo=text)), SHOWN[6](smooth()))


def photo_jpg(path) -> None:
    """The file of the public report: 96 wide and 64 high as it is stored, to be shown upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path, exif=exif)


def test_folders_and_records_read_a_turned_photograph_alike(tmp_path):
    (tmp_path / "photos").mkdir()
    photo_jpg(tmp_path / "photos" / "photo.jpg")
    Image.fromarray(smooth()).save(tmp_path / "photos" / "upright.png")
    prepare(f"folder:{tmp_path / 'photos'}", str(tmp_path / "records"), 1)
    folder, records = open_source(f"folder:{tmp_path / 'photos'}"), open_source(f"records:{tmp_path / 'records'}")
    seen = folder.loader()(tf.constant(0, tf.int64)).numpy()
    assert seen.shape == (96, 64, 3)
    # The gradient runs from the top of what is stored, which is the right of what is shown.
    assert seen[:, 0].mean() > 200 and seen[:, -1].mean() < 50
    (record, _, _), *_ = records.records(0, 2, in_order=True)
    np.testing.assert_array_equal(records.loader()(record), seen)
