"""What `search --add` takes: each image once, however it is called, and a word about what it does not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from instcls_tf.data.folder import root_of
from instcls_tf.data.image_suffixes import IMAGE_SUFFIXES
from instcls_tf.errors import UserError
from instcls_tf.search.commands import Searched, search_in_run
from tests.encoders import trained_encoder
from tests.images import write_images
from tests.single.test_index import ALL, make_run

NAMES = ["june/1.png", "june/2.png", "may/3.png"]


@pytest.fixture
def photos(tmp_path) -> Path:
    write_images(tmp_path / "photos", NAMES)
    return tmp_path / "photos"


@pytest.fixture
def workdir(photos, tmp_path) -> str:
    return make_run(tmp_path / "run", photos, trained_encoder())


def searched(workdir: str, *add: Path | str, k: int = 1, **changes: str) -> Searched:
    return search_in_run(workdir, ["june/1.png"], k, **{**ALL, **changes}, add=[*map(str, add)])


def test_images_of_the_datasets_own_folder_are_in_the_index_already(workdir, photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "link").symlink_to(photos)
    kept = {"index_path": str(tmp_path / "kept")}
    monkeypatch.chdir(tmp_path)
    for settings in ({}, kept, kept):
        for add in (photos / "june", photos / "june" / "2.png", "photos/june", tmp_path / "link" / "june"):
            assert searched(workdir, add, **settings).among.names == NAMES
            assert "0 images added to 3" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^--k=4: must be between 1 and the 3 images that are searched$"):
        searched(workdir, photos, k=4)
    write_images(photos, ["june/new.png"])
    write_images(tmp_path, ["june/1.png"])
    new, other = str(photos / "june" / "new.png"), str(tmp_path / "june" / "1.png")
    assert searched(workdir, photos / "june", tmp_path / "june", **kept).among.names == [*NAMES, new, other]


def test_of_a_folder_of_a_split(tmp_path, photos):
    assert root_of(f"folder:{photos}", "train") == str(photos)
    assert root_of(f"folder:{photos}", "june") == str(photos / "june")
    assert root_of(f"folder:{photos}", "test") is None and root_of("digits", "train") is None


def test_what_is_not_read_of_a_folder_is_told(workdir, tmp_path, capsys):
    (tmp_path / "phone").mkdir()
    for number in range(3):
        (tmp_path / "phone" / f"{number}.HEIC").write_bytes(b"x")
    assert searched(workdir, tmp_path / "phone").summary()["examples"] == 3
    unread = "images (.heic) are not read by this installation: convert them to JPEG"
    begin = f"--add={tmp_path}/phone: "
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(begin)]
    assert said == [f"{begin}no images ({', '.join(IMAGE_SUFFIXES)}) in that folder", f"{begin}3 of 3 {unread}"]
    write_images(tmp_path / "phone", ["4.png"])
    assert searched(workdir, tmp_path / "phone").summary()["examples"] == 4
    said = [line for line in capsys.readouterr().err.splitlines() if begin in line]
    assert said == [f"warning: {begin}3 of 4 {unread}"]
