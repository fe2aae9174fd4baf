"""Files of `duplicates`, `extract` and `search` that cannot be written are refused before the images are read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from flags import command
from instcls_tf import files
from instcls_tf.errors import MachineError, UserError
from instcls_tf.evaluation import commands, feature_store
from instcls_tf.report import duplicates as report
from instcls_tf.search import commands as search
from instcls_tf.search.age import Age
from instcls_tf.search.settings import Settings
from tests.encoders import trained_encoder
from tests.images import write_images
from tests.single.test_failing_file_systems import Failing
from tests.single.test_index import ALL, make_run

IMAGES = {"dataset": None, "split": None, "data_dir": None}


@pytest.fixture
def photos(tmp_path) -> Path:
    write_images(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    shutil.copy(tmp_path / "photos" / "a.png", tmp_path / "photos" / "d.png")
    return tmp_path / "photos"


@pytest.fixture
def workdir(photos, tmp_path) -> str:
    return make_run(tmp_path / "run", photos, trained_encoder())


@pytest.fixture
def unread(monkeypatch) -> None:
    """Whoever computes features fails."""

    def compute(*arguments, **settings):
        raise AssertionError("the images are read")

    monkeypatch.setattr(feature_store, "_compute", compute)


@pytest.mark.parametrize("name", ["duplicates.csv", "duplicates_drop.txt", "duplicates.json", "duplicates.html"])
@pytest.mark.usefixtures("unread")
def test_duplicates(workdir, name):
    Path(workdir, name).mkdir()
    before = sorted(os.listdir(workdir))
    with pytest.raises(UserError) as refusal:
        report.duplicates_with_page(workdir, Settings(), against=None, **IMAGES)
    assert str(refusal.value) == f"--workdir={workdir}/{name}: cannot write this file (Is a directory)"
    assert sorted(os.listdir(workdir)) == before


def test_a_folder_that_is_no_run_is_not_made(tmp_path):
    with pytest.raises(UserError, match=r"^--workdir=.*no: "):
        report.duplicates_with_page(str(tmp_path / "no"), Settings(), against=None, **IMAGES)
    assert not (tmp_path / "no").exists()


def test_the_answer_of_duplicates_outlives_a_full_disk(workdir, capsys, monkeypatch):
    monkeypatch.setattr("instcls_tf.search.duplicates.age_of", lambda *_: Age(0.8, 0.1, 100, False))
    for name in ("duplicates.csv", "duplicates_drop.txt"):
        Path(workdir, name).symlink_to("/dev/full")
    answer = report.duplicates_with_page(workdir, Settings(), against=None, **IMAGES)
    capsys.readouterr()
    with pytest.raises(UserError) as refusal:
        command.give(answer, "duplicates", workdir)
    assert str(refusal.value) == f"{workdir}/duplicates.csv: cannot write this file (No space left on device)"
    printed = json.loads(capsys.readouterr().out)
    assert printed["listed_groups"] == [["a.png", "d.png"]]
    assert printed == json.loads(Path(workdir, "duplicates.json").read_text())


@pytest.mark.usefixtures("unread")
def test_extract(workdir):
    with pytest.raises(
        UserError, match=r"^--output=/proc/x\.csv: cannot write this file \(No such file or directory\)$"
    ):
        commands.extract_of_run(workdir, None, None, None, "/proc/x.csv")


@pytest.mark.parametrize("output", ["features/", "new/features//"])
def test_a_new_folder_for_features_may_end_with_a_slash(workdir, tmp_path, output):
    answer = commands.extract_of_run(workdir, None, None, None, f"{tmp_path}/{output}")
    assert answer["files"] == len(os.listdir(tmp_path / output)) == 5


@pytest.mark.usefixtures("unread")
def test_a_folder_for_features_that_cannot_be_made(workdir):
    with pytest.raises(UserError, match=r"^--output=/proc/x: cannot write this file \(No such file or directory\)$"):
        commands.extract_of_run(workdir, None, None, None, "/proc/x/")


def test_an_index_that_is_to_grow(workdir, photos, tmp_path, monkeypatch):
    """It is read from where nothing can be written, and asked; but it does not grow there."""
    index = tmp_path / "kept"
    search.search_in_run(workdir, ["a.png"], 1, **ALL, index_path=str(index))
    content = index.read_bytes()
    monkeypatch.setattr("instcls_tf.search.index.Index.add", lambda *_: pytest.fail("the images are read"))

    def refuse(path, flag):
        raise UserError(f"--{flag}={path}: cannot write this file")

    monkeypatch.setattr("instcls_tf.files.refuse_unwritable", refuse)
    assert search.search_in_run(workdir, ["a.png"], 1, **ALL, index_path=str(index)).hits
    # Nor is it made anew where it cannot be looked at.
    monkeypatch.setattr(files, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(os, "stat", Failing(os.stat, "kept", times=4))
    with pytest.raises(MachineError, match=r"/kept: cannot be read \(Stale file handle\), tried 4 times"):
        search.search_in_run(workdir, ["a.png"], 1, **ALL, index_path=str(index))
    write_images(tmp_path / "more", ["new.png"])
    with pytest.raises(UserError, match=r"^--index=.*kept: cannot write this file$"):
        search.search_in_run(workdir, ["a.png"], 1, **ALL, index_path=str(index), add=[str(tmp_path / "more")])
    assert index.read_bytes() == content
