"""Copies are recognised by their pixels, whatever was done to them; what only looks alike is not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from instcls_tf.benchmark.planted import CHANGES, changed_copy
from instcls_tf.search.settings import Settings
from instcls_tf.search.verify import SIDE, compare

ENOUGH = Settings().similarity


def scene(seed: int, size: tuple[int, int] = (120, 90), shift: int = 0) -> Image.Image:
    """A landscape of its own for each seed; with `shift`, a few things in it are somewhere else."""
    random = np.random.default_rng(seed)
    tones = random.integers(60, 200, [2, 3])
    slope = np.linspace(0, 1, size[1])[:, None, None]
    image = Image.fromarray(np.uint8(np.broadcast_to(tones[0] * (1 - slope) + tones[1] * slope, (size[1], size[0], 3))))
    draw = ImageDraw.Draw(image)
    for number in range(14):
        left, top = random.integers(0, size, 2)
        width, height = random.integers(8, 40, 2)
        colour = tuple(random.integers(0, 256, 3).tolist())
        move = shift if number % 2 else -shift
        draw.ellipse((int(left) + move, int(top) - move, int(left + width) + move, int(top + height) - move), colour)
    return image.filter(ImageFilter.GaussianBlur(0.7))


def square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("size", [(32, 32), (120, 90), (300, 500)])
def test_a_changed_copy_is_the_same_picture(kind, size):
    for seed in range(2):
        image = scene(seed, size)
        copy = Image.open(io.BytesIO(changed_copy(image, kind, np.random.default_rng(seed))))
        for first, second in ((image, copy), (copy, image)):
            verdict = compare(square(first), square(second))
            assert verdict.similarity >= ENOUGH
            assert verdict.is_mirrored == (kind == "mirrored")


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_darker_and_brighter(factor):
    image = square(scene(1)).astype(np.float32)
    other = np.clip(image * factor, 0, 255).astype(np.uint8)
    assert compare(image.astype(np.uint8), other).similarity >= ENOUGH


def test_other_scenes_are_other_pictures():
    squares = [square(scene(seed)) for seed in range(12)]
    pairs = [(a, b) for a in range(12) for b in range(a)]
    assert max(compare(squares[a], squares[b]).similarity for a, b in pairs) < 0.7


def test_the_same_things_at_other_places_are_alike_and_no_copy():
    """Their tiny pictures correlate: it is the comparison that tells them apart."""
    for seed in range(4):
        first, second = scene(seed), scene(seed, shift=4)
        tiny = [np.asarray(image.convert("L").resize((16, 16)), np.float32).ravel() for image in (first, second)]
        assert np.corrcoef(*tiny)[0, 1] > 0.5
        assert compare(square(first), square(second)).similarity < ENOUGH


def test_other_colours_are_another_picture():
    image = square(scene(2))
    assert compare(image, image[..., ::-1].copy()).similarity < ENOUGH


def test_upside_down_is_another_picture():
    image = square(scene(3))
    assert compare(image, image[::-1]).similarity < ENOUGH


def test_only_the_given_orientations_are_compared():
    image = square(scene(4))
    assert compare(image, image[:, ::-1], [False]).similarity < ENOUGH
    assert compare(image, image[:, ::-1], [True]) == (pytest.approx(1.0, abs=1e-3), True)


def test_images_of_one_tone():
    """Nothing but the tone can tell them apart."""
    black, dark, white = (np.full([SIDE, SIDE, 3], tone, np.uint8) for tone in (0, 2, 255))
    assert compare(black, dark).similarity == 1.0
    assert compare(black, white).similarity == 0.0
    assert compare(black, square(scene(5))).similarity < ENOUGH
