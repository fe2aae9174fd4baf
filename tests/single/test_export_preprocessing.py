"""What exported models do to images: the portable resize against the views' own, and encoded files against Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from instcls_tf.data.resizing import resize_to_square
from instcls_tf.export.image_bytes import read_image
from instcls_tf.export.preprocessing import resize_in_products

SHAPES = [(1, 1), (31, 20), (32, 32), (33, 47), (64, 64), (97, 60), (375, 500), (500, 375)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_products_resize_as_the_views_do(height, width):
    images = np.random.default_rng(height).integers(0, 256, [2, height, width, 3], dtype=np.uint8)
    expected = resize_to_square(tf.constant(images), 32)
    found = resize_in_products(tf.constant(images), 32)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # of 255: sums in another order, and nothing else
    if max(height, width) <= 32:
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def read():
    specs = [tf.TensorSpec([], tf.string)]
    return tf.function(lambda encoded: read_image(encoded, 10_000, (255, 0, 0)), input_signature=specs)


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, [12, 20, len(mode)], dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_lossless_files_give_their_pixels(read, kind):
    image = picture() if kind != "GIF" else picture().quantize(64)
    np.testing.assert_array_equal(read(saved(image, kind)), image.convert("RGB"))


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_as_its_exif_says(read, orientation, order):
    smooth = Image.fromarray(np.outer(np.arange(16), np.arange(24)).astype(np.uint8) // 2).convert("RGB")
    exif = Image.Exif()
    exif.endian = "<" if order == b"II" else ">"
    exif[0x010F], exif[0x0112], exif[0x0131] = "camera", orientation, "software"
    encoded = saved(smooth, "JPEG", quality=95, exif=exif)
    assert order in encoded[:40]
    with Image.open(io.BytesIO(encoded)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image), np.int32)
    found = read(encoded)
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found, np.int32) - expected).max() <= 8  # another decoder; corners differ by 172


def test_transparency_is_laid_on_the_background(read):
    image = picture("RGBA")
    background = Image.new("RGBA", image.size, (255, 0, 0, 255))
    expected = np.asarray(Image.alpha_composite(background, image).convert("RGB"), np.int32)
    assert np.abs(np.asarray(read(saved(image, "PNG")), np.int32) - expected).max() <= 1


def test_grey_is_repeated(read):
    np.testing.assert_array_equal(read(saved(picture("L"), "PNG")), picture("L").convert("RGB"))


def bomb(side: int) -> bytes:
    """A PNG whose header declares side x side pixels."""
    encoded = bytearray(saved(picture(), "PNG"))
    encoded[16:24] = side.to_bytes(4, "big") * 2
    return bytes(encoded)


PNG, JPEG = saved(picture(), "PNG"), saved(picture(), "JPEG")
UNREADABLE = {
    "nothing": b"",
    "text": b"this is no image",
    "a signature alone": PNG[:8],
    "a cut PNG": PNG[: len(PNG) // 2],
    "a cut JPEG": JPEG[: len(JPEG) // 2],
    "a JPEG's header": JPEG[:20],
    "a bomb": bomb(60_000),
    "a large one": saved(Image.new("RGB", (101, 100)), "PNG"),
    "endless segments": b"\xff\xd8" + b"\xff\xe0\0\0" * 1000,
    "exif that points outside": b"\xff\xd8\xff\xe1\0\x20Exif\0\0II*\0\xff\xff\xff\x7f\xff\xff" + JPEG[20:],
}


@pytest.mark.parametrize("encoded", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_an_empty_image(read, encoded):
    assert read(encoded).shape == (0, 0, 3)


def test_the_largest_that_is_allowed_is_read(read):
    assert read(saved(Image.new("RGB", (100, 100)), "PNG")).shape == (100, 100, 3)
