"""Images that cannot be read are counted in each answer, and named, whether features are computed or read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import instcls_tf
from instcls_tf.data.sources import open_source, open_training_source
from instcls_tf.evaluation.commands import extract_of_run
from instcls_tf.evaluation.unreadable import named, tell_of_unreadable
from instcls_tf.progress import Progress
from instcls_tf.report.duplicates import duplicates_with_page
from instcls_tf.run.workdir import load_run
from instcls_tf.search.age import Age
from instcls_tf.search.commands import search_in_run
from instcls_tf.search.settings import Settings
from tests.encoders import trained_encoder
from tests.images import write_images
from tests.single.test_index import ALL, make_run

BROKEN = [f"{number:02d} broken.jpg" for number in range(12)]
IMAGES = {"dataset": None, "split": None, "data_dir": None}


@pytest.fixture
def workdir(tmp_path) -> str:
    """Of a run whose folder has 12 files that are no images, and 3 that are."""
    write_images(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    for name in BROKEN:
        (tmp_path / "photos" / name).write_bytes(b"\xff\xd8 no image")
    (tmp_path / "photos" / BROKEN[1]).write_bytes(b"")
    return make_run(tmp_path / "run", tmp_path / "photos", trained_encoder())


def warnings(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_extract(workdir, tmp_path, capsys):
    said = []
    for name in ("first.npz", "second.npz"):
        answer = extract_of_run(workdir, *IMAGES.values(), str(tmp_path / name))
        assert (answer["examples"], answer["unreadable"]) == (3, 12)
        said += warnings(capsys)
    assert said[0] == said[1] and len(said) == 2, "the second time, features are read back"
    begin = f"warning: 12 of 15 image(s) of folder:{tmp_path}/photos cannot be read and are left out: 00 broken.jpg: "
    assert said[0].startswith(begin) and said[0].endswith(", …")
    assert "01 broken.jpg: empty" in said[0]
    assert all(name in said[0] for name in BROKEN[:10]) and BROKEN[10] not in said[0]


def test_images_that_are_gone_are_not_unreadable(workdir, tmp_path, capsys):
    """The run has ids for them still."""
    open_training_source(load_run(workdir)).write_manifest(workdir)
    for name in ("b.png", BROKEN[0]):
        (tmp_path / "photos" / name).unlink()
    answer = extract_of_run(workdir, *IMAGES.values(), str(tmp_path / "x.npz"))
    assert (answer["examples"], answer["unreadable"]) == (2, 11)
    of_all = f"of 15 image(s) of folder:{tmp_path}/photos"
    first, second = warnings(capsys)
    assert first == f"warning: 2 {of_all} are not there any more and are left out: 00 broken.jpg, b.png"
    assert second.startswith(f"warning: 11 {of_all} cannot be read and are left out: 01 broken.jpg: empty, 02 broken")


def test_search(workdir, tmp_path, capsys):
    settings = {**ALL, "index_path": str(tmp_path / "kept")}
    answer = search_in_run(workdir, ["a.png"], 2, **settings).summary()
    assert (answer["examples"], answer["unreadable"]) == (3, 12)
    assert len(warnings(capsys)) == 1
    (tmp_path / "other.jpg").write_bytes(b"")
    again = search_in_run(workdir, ["a.png"], 2, **settings, add=[str(tmp_path / "other.jpg")]).summary()
    assert again["unreadable"] == 13 and again["hits"] == answer["hits"]
    assert warnings(capsys) == [
        f"warning: 12 image(s) could not be read when --index={tmp_path}/kept was made",
        f"warning: 1 image(s) of --add cannot be read and are left out: {tmp_path}/other.jpg",
    ]
    assert instcls_tf.Index.load(tmp_path / "kept").unreadable == 12


def test_duplicates(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("instcls_tf.search.duplicates.age_of", lambda *_: Age(0.8, 0.1, 100, False))
    said = []
    for _ in range(2):
        answer = duplicates_with_page(workdir, Settings(), against=None, **IMAGES).result
        assert (answer["examples"], answer["unreadable"]) == (3, 12)
        said += warnings(capsys)
    assert len(said) == 2 and said[0] == said[1]


def test_what_breaks_after_features_were_computed(workdir, tmp_path, capsys, monkeypatch):
    """It has no hash, and is no image of `duplicates` any more."""
    monkeypatch.setattr("instcls_tf.search.duplicates.age_of", lambda *_: Age(0.8, 0.1, 100, False))
    monkeypatch.setattr("instcls_tf.data.folder.file_identity", lambda *_: b"")
    duplicates_with_page(workdir, Settings(), against=None, **IMAGES)
    capsys.readouterr()
    Path(tmp_path, "photos", "b.png").write_bytes(b"no image")
    answer = duplicates_with_page(workdir, Settings(), against=None, **IMAGES).result
    assert (answer["examples"], answer["unreadable"]) == (2, 13)
    assert [line.split(" image(s)")[0] for line in warnings(capsys)] == ["warning: 12 of 15", "warning: 13 of 15"]


def test_nothing_is_said_of_images_that_can_be_read(capsys):
    digits = open_source("digits")
    tell_of_unreadable(digits, np.arange(digits.num_instances), Progress(visible=True))
    assert capsys.readouterr().err == ""
    tell_of_unreadable(digits, np.arange(1, digits.num_instances), Progress(visible=True))
    assert capsys.readouterr().err.endswith("image(s) of digits cannot be read and are left out: 0\n")


def test_names_are_told_on_one_line():
    assert named(["a\nb.jpg", "c.jpg"], {"c.jpg": "no\x1bimage"}) == "'a\\nb.jpg', c.jpg: 'no\\x1bimage'"
