"""The picture of views: rows of images that can be read."""

from __future__ import annotations

import numpy as np
import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.report.view_grid import draw_views
from tests.end_to_end.runs import write_images


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
