"""Images of too many pixels, and in rare formats."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.config import LARGEST_MAX_PIXELS
from instcls_tf.data.decoding import Reading
from instcls_tf.data.image_suffixes import IMAGE_SUFFIXES, UNREAD_SUFFIXES, unread_sentence
from instcls_tf.data.source import notes_of
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from tests.reading import decode, encode, refusal, smooth

# ------------------------------------------------------------------------------------------------- too many pixels


def test_a_small_file_of_many_pixels_is_refused_by_its_header(tmp_path, monkeypatch):
    def load(image):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000
    assert refusal(file.getvalue()) == "12000 x 12000 pixels, more than --max_pixels=120000000"
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(file.getvalue())
    source = open_source(f"folder:{tmp_path}", reading=Reading(max_pixels=1000))
    assert source.loader()(tf.constant(0, tf.int64)).shape == [0, 0, 3]
    assert source.bad.reasons == {f"{tmp_path}/0.png": "12000 x 12000 pixels, more than --max_pixels=1000"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"])
def test_the_limit_holds_for_every_format(kind):
    encoded = encode(Image.fromarray(smooth(40, 50)), kind, **({"sizes": [(50, 40)]} if kind == "ICO" else {}))
    assert decode(encoded, max_pixels=2000).shape == (40, 50, 3)
    assert refusal(encoded, max_pixels=1999) == "50 x 40 pixels, more than --max_pixels=1999"


def test_the_limit_holds_for_both_sides_together():
    turned = encode(Image.fromarray(smooth(40, 50)), "JPEG", 6)
    assert decode(turned, max_pixels=2000).shape == (50, 40, 3)
    assert refusal(turned, max_pixels=1999).endswith("more than --max_pixels=1999")


def test_what_pillow_would_not_open_is_refused_in_the_same_words():
    assert refusal(png_that_declares(60_000)) == "3600000000 pixels, more than --max_pixels=120000000"
    assert 2 * Image.MAX_IMAGE_PIXELS == LARGEST_MAX_PIXELS


def test_an_icon_is_judged_by_the_image_inside():
    inner = png_that_declares(12_000)  # Whose pixels are not even there: decoding would find that out.
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    assert refusal(icon) == "12000 x 12000 pixels, more than --max_pixels=120000000"


def png_that_declares(side: int) -> bytes:
    png = bytearray(encode(Image.new("L", (8, 8)), "PNG"))
    png[16:24] = side.to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


# --------------------------------------------------------------------------------------------------------- suffixes


def test_every_suffix_that_is_read_is_decoded(tmp_path):
    colour = Image.new("RGB", (36, 24), (200, 100, 50))
    kinds = {
        **dict.fromkeys([".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp"], "JPEG"),
        **dict.fromkeys([".png", ".apng"], "PNG"),
        **dict.fromkeys([".tif", ".tiff"], "TIFF"),
        **dict.fromkeys([".jp2", ".j2k", ".jpx", ".jpf"], "JPEG2000"),
        **dict.fromkeys([".ppm", ".pgm", ".pbm", ".pnm"], "PPM"),
        **{".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".ico": "ICO", ".avif": "AVIF", ".mpo": "MPO"},
    }
    options = {"ICO": {"sizes": [(36, 24)]}, "MPO": {"save_all": True, "append_images": [colour]}}
    for suffix, kind in kinds.items():
        (tmp_path / f"image{suffix}").write_bytes(encode(colour, kind, **options.get(kind, {})))
    (tmp_path / "image.pfm").write_bytes(b"Pf\n36 24\n-1.0\n" + np.full([24, 36], 0.5, "<f4").tobytes())
    (tmp_path / "image.qoi").write_bytes(qoi(36, 24, (200, 100, 50)))
    (tmp_path / "image.psd").write_bytes(psd(36, 24, (200, 100, 50)))
    assert {f".{path.name.split('.')[1]}" for path in tmp_path.iterdir()} == set(IMAGE_SUFFIXES)
    source = open_source(f"folder:{tmp_path}")
    assert source.num_instances == len(IMAGE_SUFFIXES) and not source.notes
    images = tf.data.Dataset.range(source.num_instances).map(source.loader())
    for path, seen in zip(source.paths, images.as_numpy_iterator()):
        expected = (128, 128, 128) if path.endswith("pfm") else (200, 100, 50)
        assert seen.shape == (24, 36, 3) and np.abs(seen.astype(int) - expected).max() <= 5, path
    assert not source.bad.reasons


def qoi(width: int, height: int, colour: tuple[int, ...]) -> bytes:
    """https://qoiformat.org: one pixel, and runs of it."""
    runs, left = b"", width * height - 1
    while left:
        run = min(left, 62)
        runs, left = runs + bytes([0xC0 | run - 1]), left - run
    return b"qoif" + struct.pack(">IIBB", width, height, 3, 0) + b"\xfe" + bytes(colour) + runs + bytes(7) + b"\1"


def psd(width: int, height: int, colour: tuple[int, ...]) -> bytes:
    """Photoshop's file of one flat image."""
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3) + bytes(12)
    return head + struct.pack(">H", 0) + b"".join(bytes([level]) * (width * height) for level in colour)


def test_images_that_are_not_read_are_counted(tmp_path):
    for name in ("0.jpg", "1.JPEG"):
        Image.fromarray(smooth()).save(tmp_path / name, "JPEG")
    for index in range(3):
        (tmp_path / f"{index}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "raw.CR2").write_bytes(b"II*\0")
    for name in ("._0.heic", "notes.txt", "film.mov"):
        (tmp_path / name).write_bytes(b"none of our business")
    source = open_source(f"folder:{tmp_path}")
    assert tuple(source.paths) == ("0.jpg", "1.JPEG")
    assert source.notes == (
        "warning: 4 of 6 images (.cr2, .heic) are not read by this installation: convert them to JPEG",
    )
    (note,) = notes_of(source)
    assert note.startswith(f"warning: folder:{tmp_path}: 4 of 6 images (.cr2, .heic) are not read by this")
    assert (
        unread_sentence({".nef": 1}, 99)
        == "1 of 100 images (.nef) is not read by this installation: convert it to JPEG"
    )
    assert unread_sentence({".heic": 2500}, 500).startswith("warning: 2,500 of 3,000 images (.heic) are not read")
    assert not set(UNREAD_SUFFIXES) & set(IMAGE_SUFFIXES)
    assert ".jps" in UNREAD_SUFFIXES, "two images beside each other"


def test_a_folder_of_unread_images_alone_says_so(tmp_path):
    (tmp_path / "0.heic").write_bytes(b"")
    (tmp_path / "1.heic").write_bytes(b"")
    with pytest.raises(UserError) as error:
        open_source(f"folder:{tmp_path}")
    assert str(error.value) == (
        f"--dataset=folder:{tmp_path}: no images ({', '.join(IMAGE_SUFFIXES)}) in that folder; 2 of 2"
        " images (.heic) are not read by this installation: convert them to JPEG"
    )


def test_a_run_that_began_with_the_first_suffixes_goes_on_with_them(tmp_path):
    photos, workdir = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    workdir.mkdir()
    for name in ("a.jpg", "c.jpg"):
        Image.fromarray(smooth()).save(photos / name)
    open_source(f"folder:{photos}").write_manifest(str(workdir))
    Image.fromarray(smooth()).save(photos / "b.tif")
    source = open_source(f"folder:{photos}", workdir=str(workdir))
    assert tuple(source.paths) == ("a.jpg", "c.jpg") and not source.changes.added
    assert source.notes == (
        "1 file(s) are left out: the run began with images of .jpg, .jpeg, .png, .webp, .bmp, .gif only",
    )
    # Another run, or one that has begun with others, sees all of them.
    assert tuple(open_source(f"folder:{photos}").paths) == ("a.jpg", "b.tif", "c.jpg")


def test_postscript_is_never_run():
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n") == "not an image"
