"""Listing a folder: what is no person's picture is left out and counted, and no entry refuses the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tensorflow as tf

from instcls_tf.data.folder import open_folder
from instcls_tf.data.listing import is_in_a_listed_folder, list_images
from instcls_tf.errors import UserError

NOBODY = 65534


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def listed(folder) -> list[str]:
    return list(list_images(str(folder)).paths)


def notes(folder) -> tuple[str, ...]:
    return list_images(str(folder)).left_out.sentences()


PLACES = ["x.png", "cat/x.png", "cat/new/x.png", "run.d/x.png", "run/x.png", "run/in/it/x.png", ".hidden/x.png"]
PLACES += [
    "cat/@eaDir/x.png",
    "cat/.x.png",
    "../x.png",
    "cat/../x.png",
    "link/x.png",
    "linked.png",
]


@pytest.mark.parametrize("place", PLACES)
def test_where_a_file_would_be_listed_is_known_before_it_is_written(tmp_path, place):
    root = tmp_path / "photos"
    touch(root, "cat/0.jpg", "run/run.flags", "run.flags")
    (root / "link").symlink_to("cat")
    (root / "linked.png").symlink_to(tmp_path / "x.png")
    (tmp_path / "in").symlink_to(root)
    expected = is_in_a_listed_folder(str(root), str(root / place))
    assert is_in_a_listed_folder(str(tmp_path / "in"), f"{tmp_path}/in/{place}") == expected
    before = set(listed(root)) - {place}
    touch(root, place)
    assert (set(listed(root)) != before) == expected


# --------------------------------------------------------------------------------------------- What no person put there


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints",
        ".Trash-1000",
        ".thumbnails",
        ".AppleDouble",
        "@eaDir",
        "__MACOSX",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "System Volume Information",
        "lost+found",
        "#recycle",
        "@Recycle",
    ],
)
def test_folders_that_programs_made_are_not_looked_into(tmp_path, name):
    touch(tmp_path, "cat/0.jpg", "dog/0.jpg", f"{name}/0.jpg", f"{name}/deep/0.jpg", f"cat/{name}/1.jpg")
    assert listed(tmp_path) == ["cat/0.jpg", "dog/0.jpg"]
    assert notes(tmp_path) == (f"2 folders that programs made ({name!r}) were not looked into",)
    assert open_folder(f"folder:{tmp_path.parent}", tmp_path.name).class_names == ("cat", "dog")


def test_a_split_with_a_hidden_folder_has_the_classes_of_the_other(tmp_path):
    touch(tmp_path, "train/cat/0.jpg", "train/dog/0.jpg", "test/cat/0.jpg", "test/dog/0.jpg", "test/.thumbnails/0.jpg")
    test = open_folder(f"folder:{tmp_path}", "test")
    assert test.class_names == ("cat", "dog") and test.labels.tolist() == [0, 1]


def test_what_is_left_out_is_counted_in_one_line(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "@eaDir/a.jpg", "b/._c.jpg", "b/c.jpg")
    assert listed(tmp_path) == ["a.jpg", "b/c.jpg"]
    assert notes(tmp_path) == (
        "1 folder and 2 files that programs made ('._a.jpg', '._c.jpg', '@eaDir') were not looked into",
    )
    touch(tmp_path, *(f".{index}/a.jpg" for index in range(9)))
    (line,) = notes(tmp_path)
    assert line == ("10 folders and 2 files that programs made ('.0', '.1', '.2', '.3', '.4', …) were not looked into")


def test_what_lies_beside_a_folder_that_happens_to_be_called_train_is_told(tmp_path):
    def source():
        return open_folder(f"folder:{tmp_path}", "train")

    touch(tmp_path, "train/0.jpg", "train/1.jpg", "test/2.jpg", "val/3.jpg", "notes/readme.txt", ".hidden/4.jpg")
    os.symlink("train", tmp_path / "latest")
    touch(tmp_path / "run", "gallery/0.png", "run.flags")
    assert source().notes == ()
    said = f"{tmp_path}/train alone is trained on: {{}} beside train, test and val, such as {{}} not used"
    touch(tmp_path, "zoo/deep/5.jpg")
    assert source().notes == (said.format("1 image", "'zoo/deep/5.jpg', is"),)
    touch(tmp_path, "2019/6.jpg", "7.jpg")
    assert source().notes == (said.format("3 images", "'2019/6.jpg', are"),)
    assert list(source().paths) == ["0.jpg", "1.jpg"]


def test_a_folder_that_is_named_is_looked_into_whatever_it_is_called(tmp_path):
    touch(tmp_path / ".photos", "a.jpg", "b.jpg")
    assert listed(tmp_path / ".photos") == ["a.jpg", "b.jpg"] and notes(tmp_path / ".photos") == ()


def test_names_that_merely_resemble_are_folders_of_a_person(tmp_path):
    touch(tmp_path, "recycle/0.jpg", "tmp/0.jpg", "@home/0.jpg", "lost/0.jpg", "$/0.jpg")
    assert len(listed(tmp_path)) == 5 and notes(tmp_path) == ()


def test_nothing_left_says_what_was_left_out(tmp_path):
    touch(tmp_path, ".thumbnails/0.jpg")
    with pytest.raises(UserError) as error:
        open_folder(f"folder:{tmp_path}", "train")
    assert str(error.value).endswith("in that folder; 1 folder that programs made ('.thumbnails') was not looked into")


def test_a_run_that_began_with_a_hidden_folder_keeps_its_ids(tmp_path):
    photos, workdir = tmp_path / "photos", tmp_path / "run"
    workdir.mkdir()
    touch(photos, ".thumbnails/0.jpg", "cat/0.jpg", "cat/1.jpg")
    # As a listing that looked into hidden folders wrote it.
    (workdir / "manifest.tsv").write_text("0\t1\t.thumbnails/0.jpg\n1\t1\tcat/0.jpg\n2\t1\tcat/1.jpg\n")
    source = open_folder(f"folder:{tmp_path}", "photos", str(workdir))
    assert list(source.paths) == [".thumbnails/0.jpg", "cat/0.jpg", "cat/1.jpg"]
    assert source.changes == ((), ()) and source.labels.tolist() == [0, 1, 1]


# -------------------------------------------------------------------------------------------------- Odd single entries


def test_links_that_lead_nowhere_are_bad_images_and_the_rest_is_used(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(2):
        (photos / f"{index}.jpg").write_bytes(tf.io.encode_jpeg(tf.zeros([4, 4, 3], tf.uint8)).numpy())
    os.symlink("self.jpg", photos / "self.jpg")
    os.symlink("n" * 300, photos / "long.jpg")
    os.symlink("0.jpg/x.jpg", photos / "through.jpg")
    os.symlink("round", photos / "round")
    os.symlink("0.jpg/x", photos / "no_suffix")
    source = open_folder(f"folder:{photos}", "train")
    assert list(source.paths) == ["0.jpg", "1.jpg", "long.jpg", "self.jpg", "through.jpg"]
    sizes = [image.shape[0] for image in tf.data.Dataset.range(5).map(source.loader())]
    assert sizes == [4, 4, 0, 0, 0] and source.notes == ()
    assert {os.path.basename(name): reason for name, reason in source.bad.reasons.items()} == {
        "long.jpg": "file name too long",
        "self.jpg": "too many levels of symbolic links",
        "through.jpg": "not a directory",
    }


@pytest.fixture
def public_folder():
    """A folder that other users may enter, as those of pytest are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_of_another_user_is_left_out_and_told(public_folder):
    touch(public_folder, "cat/0.jpg", "dog/0.jpg", "private/0.jpg", "private/within/1.jpg")
    os.symlink("private/within", public_folder / "link")
    (public_folder / "private").chmod(0o700 if os.getuid() == 0 else 0)
    code = (
        "import json, os; from instcls_tf.data.folder import open_folder\n"
        f"if os.getuid() == 0: os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"source = open_folder('folder:{public_folder.parent}', '{public_folder.name}')\n"
        "print(json.dumps([list(source.paths), source.class_names, source.notes]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (public_folder / "private").chmod(0o700)
    assert done.returncode == 0, done.stderr
    paths, class_names, said = json.loads(done.stdout)
    assert paths == ["cat/0.jpg", "dog/0.jpg"] and class_names == ["cat", "dog"]
    assert said == ["2 folders could not be listed ('link': permission denied, 'private': permission denied)"]


def test_a_folder_that_vanishes_meanwhile_is_left_out_and_told(tmp_path, monkeypatch):
    touch(tmp_path, "cat/0.jpg", "dog/0.jpg", "going/0.jpg")
    scandir = os.scandir

    def scandir_while_somebody_works(folder):
        entries = scandir(folder)
        if folder == os.fsencode(tmp_path / "cat"):
            shutil.rmtree(tmp_path / "going")
        return entries

    monkeypatch.setattr(os, "scandir", scandir_while_somebody_works)
    listing = list_images(str(tmp_path))
    assert list(listing.paths) == ["cat/0.jpg", "dog/0.jpg"]
    assert listing.left_out.sentences() == ("1 folder could not be listed ('going': no such file or directory)",)


def test_a_root_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "b.jpg")

    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError) as error:
        open_folder(f"folder:{tmp_path}", "train")
    assert str(error.value) == f"--dataset=folder:{tmp_path}: cannot list {tmp_path} (Permission denied)"


# ------------------------------------------------------------------------------------------------------ Nested folders


@pytest.fixture
def nest(tmp_path):
    """A function that makes folders within each other; they go before pytest's own removal, which is recursive."""
    beginning = tmp_path / "n"

    def make(depth: int, name: str) -> Path:
        beginning.mkdir()
        touch(beginning, "0.jpg")
        here = os.open(beginning, os.O_DIRECTORY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("deepest.jpg", os.O_CREAT, dir_fd=here))
        os.close(here)
        return beginning

    yield make
    subprocess.run(["rm", "-rf", beginning], check=True)


def test_1200_folders_within_each_other(nest):
    folder = nest(1200, "d")
    assert listed(folder) == ["0.jpg", "d/" * 1200 + "deepest.jpg"] and notes(folder) == ()


def test_deeper_than_any_path_can_name(nest):
    folder = nest(1200, "deeper")
    assert listed(folder) == ["0.jpg"]
    (line,) = notes(folder)
    assert line.startswith("1 folder could not be listed ('deeper/deeper/") and line.endswith(
        "deeper': file name too long)"
    )
    assert len(line) < 200


# --------------------------------------------------------------------------------------------------- Folders of runs


def test_folders_of_runs_are_never_part_of_a_dataset(tmp_path):
    touch(tmp_path, "cat/0.jpg", "dog/0.jpg", "runs/a/run.flags", "runs/a/similarity.png", "runs/a/b/c.png")
    assert listed(tmp_path) == ["cat/0.jpg", "dog/0.jpg"]
    assert notes(tmp_path) == ("1 folder that holds a run ('runs/a') was not looked into",)
    touch(tmp_path, "b/run.flags", "b/.cache/x.png")
    assert notes(tmp_path) == ("2 folders that hold a run ('b', 'runs/a') were not looked into",)


def test_the_folder_that_was_named_may_hold_a_run(tmp_path):
    touch(tmp_path, "run.flags", "0.jpg", "1.jpg")
    assert listed(tmp_path) == ["0.jpg", "1.jpg"]
