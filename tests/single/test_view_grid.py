"""The picture of views: rows of images that can be read."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from absl.flags import FlagValues

from flags import data
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.report.view_grid import draw_views
from tests.images import write_images
from tests.recipes import write_run


def _config(photos) -> PretrainConfig:
    return PretrainConfig(dataset=f"folder:{photos}", image_size=16, augmentation="none", workdir="unused")


def test_an_image_that_cannot_be_read_has_no_row(tmp_path):
    from PIL import Image

    photos, output = tmp_path / "photos", tmp_path / "views.png"
    write_images(photos, ["0.jpg", "1.jpg", "2.jpg"])
    (photos / "1.jpg").write_bytes(b"no picture")
    (photos / "3.heic").write_bytes(b"")
    said: list[str] = []
    draw_views(_config(photos), str(output), images=3, columns=2, say=said.append)
    rows = np.split(np.asarray(Image.open(output)), 2)
    assert rows[0].shape[0] == 16 + 4 and not np.array_equal(*rows)
    assert len(said) == 2 and ".heic" in said[0]
    assert said[1] == f"{photos}/1.jpg: not an image, not in the picture"


def test_a_folder_of_which_nothing_can_be_read(tmp_path):
    photos = tmp_path / "photos"
    write_images(photos, ["0.jpg", "1.jpg"])
    for index in range(2):
        (photos / f"{index}.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of 2 images can be read: .*0\.jpg: not an image"):
        draw_views(_config(photos), str(tmp_path / "views.png"), images=2, columns=2)
    assert not (tmp_path / "views.png").exists()


def test_views_are_those_of_a_preset_or_of_a_run(tmp_path, monkeypatch):
    """With flags that are given besides; of a run also with what one that begins is refused."""

    def asked(*words: str) -> PretrainConfig:
        monkeypatch.setattr(sys, "argv", ["show_views", *words])
        data.define_show_views(values := FlagValues())
        values(sys.argv)
        return data.view_config(values)

    photos = PretrainConfig.from_flagfile("photos", workdir="unused", dataset="digits", precision="float32")
    preset = "--flagfile=flags/presets/photos.flags"
    assert asked(preset, "--dataset=digits", "--precision=float32") == photos
    write_run(tmp_path, photos.replace(tfds_split="train[:5]", color_strength=2.0))
    run = photos.replace(tfds_split="train[:5]", color_strength=2.0, image_size=8)
    assert asked(f"--workdir={tmp_path}", "--image_size=8") == run
    with pytest.raises(UserError, match=r"^--color_strength=0\.1: is of --augmentation=simclr, --augmentation=none"):
        asked(f"--workdir={tmp_path}", "--augmentation=none", "--color_strength=0.1")
    with pytest.raises(UserError, match="holds no run"):
        asked(f"--workdir={tmp_path}/none")
