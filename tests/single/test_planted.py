"""Copies that are planted for the benchmark of duplicates, of photographs as cameras leave them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from instcls_tf.benchmark.planted import plant
from instcls_tf.errors import UserError
from tests.single.test_verify import scene


def test_planted_copies_are_of_what_is_seen(tmp_path):
    """Upright, on the background, and of another original where one cannot be read."""
    (tmp_path / "photos").mkdir()
    lying, exif = scene(1, (80, 60)), Image.Exif()
    exif[0x0112] = 6
    for number in range(6):
        lying.save(tmp_path / "photos" / f"turned{number}.jpg", exif=exif, quality=95)
    for name in ("broken", "torn"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(b"\xff\xd8 no image")
    (tmp_path / "photos" / "nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    for seed in range(8):
        planted = plant(str(tmp_path / "photos"), str(tmp_path / f"set{seed}"), 100, 1, seed)
        assert planted.examples == 13 and len({original for _, original in planted.copies.values()}) == 5
        assert {original[:6] for _, original in planted.copies.values()} == {"turned"}
        (name,) = (name for name, (kind, _) in planted.copies.items() if kind == "encoded")
        copy = Image.open(tmp_path / f"set{seed}" / name)
        difference = np.asarray(copy, int) - np.asarray(lying.transpose(Image.Transpose.ROTATE_270), int)
        assert copy.size == (60, 80) and np.abs(difference).mean() < 8
    with pytest.raises(UserError, match=r"^--dataset=folder:.*: fewer than 5 of its images can be read$"):
        for number in range(2):
            (tmp_path / "photos" / f"turned{number}.jpg").write_bytes(b"")
        plant(str(tmp_path / "photos"), str(tmp_path / "more"), 100, 1)


def test_transparency_of_an_original_is_laid_on_the_background(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    plant(str(tmp_path / "photos"), str(tmp_path / "set"), 5, 1)
    for path in (tmp_path / "set").glob("planted_*.jpg"):
        assert np.asarray(Image.open(path)).min() > 250, path.name
