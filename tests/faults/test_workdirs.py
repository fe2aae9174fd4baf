"""Workdirs that are taken, cannot be one, or whose run has other flags or images; logs that are damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import psutil
import pytest
from PIL import Image

from tests.commands import TIMEOUT, forked, run_script, snapshot
from tests.faults.conftest import Damaged, flags_of, sentence_of, write_photos


def hold(workdir: str) -> None:
    from instcls_tf.run.lock import WorkdirLock

    lock = WorkdirLock(workdir)
    signal.pause()
    lock.release()


def test_a_second_run_in_a_workdir(damaged):
    """Refused with host, process and start of the owner, nothing is touched; killed, the owner holds it no longer."""
    owner = forked(hold, str(damaged.workdir))
    try:
        lock, end = damaged.workdir / "lock", time.monotonic() + TIMEOUT
        while not lock.exists() or not lock.read_text().endswith("}"):
            assert owner.is_running() and owner.status() != psutil.STATUS_ZOMBIE, "the owner has ended"
            assert time.monotonic() < end, "the owner has not taken the workdir"
            time.sleep(0.01)
        before = snapshot(damaged.checkpoints)
        sentence = sentence_of(damaged.resume(max_steps=6))
        who = f"is in use by process {owner.pid} on {os.uname().nodename}, since "
        assert sentence.startswith(f"--workdir={damaged.workdir}: {who}")
        assert snapshot(damaged.checkpoints) == before
    finally:
        owner.kill()
        owner.wait(60)
    finished = damaged.resume(max_steps=6)
    assert finished.status == 0, finished.output
    assert not (damaged.workdir / "lock").exists()


def test_a_run_that_has_saved_nothing(damaged):
    """A workdir without any checkpoint is free for other flags; what the first run logged goes, and it is said."""
    shutil.rmtree(damaged.checkpoints)
    finished = damaged.resume(max_steps=0, seed=7)
    assert finished.status == 0, finished.output
    assert (
        f"{damaged.workdir}: a run with other flags has saved nothing there, this one takes its place"
        in finished.stderr
    )
    assert "--seed=7\n" in (damaged.workdir / "run.flags").read_text()
    assert (damaged.workdir / "metrics.jsonl").read_text() == ""
    assert damaged.steps() == [0]


@pytest.mark.parametrize("keep", [0.0, 0.5], ids=["empty", "cut"])
def test_run_flags_are_cut(damaged, keep):
    """Empty, or cut at a line's end: not read as another recipe."""
    path = damaged.workdir / "run.flags"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: int(keep * len(lines))]))
    assert sentence_of(damaged.resume()).startswith(f"{path}: {'cut off' if keep else 'empty'}, wanted all flags")
    assert damaged.steps() == [3, 6]


def test_spoilt_lines_in_the_log(damaged):
    """NUL bytes, an empty and a cut line in metrics.jsonl are skipped with a warning; the run goes on."""
    path = damaged.workdir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", "\0\0\0", lines[1], '{"step": 3, "lo']))
    finished = damaged.resume(max_steps=6)
    assert finished.status == 0, finished.output
    assert (
        f"warning: {path}: skipped 3 line(s) that are no JSON objects with a step, the first is line 2"
        in finished.stderr
    )
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_log_that_cannot_be_written(damaged, past):
    """TensorBoard's folder is a file: one warning, and the run and its checkpoints go on."""
    shutil.rmtree(damaged.workdir / "tensorboard")
    (damaged.workdir / "tensorboard").write_text("mine")
    finished = damaged.resume(max_steps=9)
    assert finished.status == 0, finished.output
    assert finished.stderr.count("cannot be written") == finished.stderr.count("the run goes on without its log") == 1
    assert damaged.steps() == [6, 9]
    assert len((damaged.workdir / "metrics.jsonl").read_text().splitlines()) == 9


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lr=[0.1,0.4]", "holds [ ], which TensorFlow reads as a pattern"),
        ("a*b?", "holds * ?, which TensorFlow reads as a pattern"),
        ("a\nb", "wanted a path without control characters, in UTF-8"),
        ("caf\udce9", "wanted a path without control characters, in UTF-8"),
    ],
    ids=["brackets", "wildcards", "newline", "not_utf8"],
)
def test_a_workdir_that_tensorflow_cannot_hold(past, tmp_path, name, what):
    """Refused before the first step, not at the first save."""
    sentence = sentence_of(run_script("pretrain", *flags_of(tmp_path / name, past.photos)))
    assert sentence.startswith("--workdir=") and what in sentence
    assert list(tmp_path.iterdir()) == []


def test_home_is_expanded(damaged, monkeypatch):
    """`--workdir=~/run` and `--dataset=folder:~/photos/` are those in the home folder."""
    home = damaged.workdir.parent
    monkeypatch.setenv("HOME", str(home))
    finished = run_script("pretrain", *flags_of("~/run", damaged.photos, max_steps=6))
    assert finished.status == 0, finished.output
    assert f"continuing {damaged.workdir} from step 6" in finished.stderr
    assert not (home / "~").exists()


# ----------------------------------------------------------------------------------------------------------- recipe


def test_a_slash_at_the_end_of_a_folder(damaged):
    """`folder:/x/` and `folder:/x` are the same dataset."""
    finished = damaged.resume(max_steps=6, dataset=f"folder:{damaged.photos}/")
    assert finished.status == 0, finished.output
    assert f"continuing {damaged.workdir} from step 6" in finished.stderr


@pytest.mark.parametrize(("flag", "before", "now"), [("seed", 0, 1), ("learning_rate", 0.05, 0.5)])
def test_other_flags(damaged, flag, before, now):
    """A resume with another recipe is refused, with both values."""
    sentence = sentence_of(damaged.resume(**{flag: now}))
    assert f"belongs to a run with --{flag}={before}, this one has --{flag}={now}" in sentence
    assert damaged.steps() == [3, 6]


def test_a_finished_run_is_extended(past, tmp_path):
    """`--extend_epochs` is a longer recipe that says so: the run goes on at its full rate; begun, it stays as long."""
    shutil.copytree(past.whole, tmp_path / "run")
    run = Damaged(tmp_path / "run", past.photos)
    finished = run.resume(max_steps=12, extend_epochs=1)
    assert finished.status == 0, finished.output
    assert f"{run.workdir}: extended to 3 + 1 epochs" in finished.stderr
    assert run.steps() == [9, 12]
    rates = [json.loads(line)["learning_rate"] for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert rates[8] < 0.01 and rates[9] == pytest.approx(0.05)
    sentence = sentence_of(run.resume(max_steps=12))
    assert "belongs to a run with --extend_epochs=1, this one has --extend_epochs=0" in sentence
    recipe = (run.workdir / "run.flags").read_bytes()
    sentence = sentence_of(run.resume(max_steps=15, extend_epochs=2))
    assert f"--extend_epochs=2: the extension of {run.workdir} by 1 has begun (step 12, it starts at 9)" in sentence
    assert (run.workdir / "run.flags").read_bytes() == recipe and run.steps() == [9, 12]


class OwnPhotos(Damaged):
    """A run that has saved, on pictures of its own that may be changed."""

    def __init__(self, folder):
        super().__init__(folder / "run", folder / "photos")
        write_photos(self.photos)
        finished = self.resume(max_steps=0)
        assert finished.status == 0, finished.output


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> OwnPhotos:
    return OwnPhotos(tmp_path_factory.mktemp("own"))


@pytest.fixture
def own(begun, tmp_path) -> Damaged:
    """The same run, whose pictures are at the same place for it alone."""
    shutil.copytree(begun.workdir, tmp_path / "run")
    shutil.copytree(begun.photos, tmp_path / "photos")
    yield Damaged(tmp_path / "run", begun.photos)
    shutil.rmtree(begun.photos)
    shutil.copytree(tmp_path / "photos", begun.photos)


def test_a_file_was_added(own):
    """A new picture has no class: refused with its name and both counts."""
    shutil.copy(own.photos / "03.png", own.photos / "new.png")
    sentence = sentence_of(own.resume())
    assert "'new.png' was added after the run" in sentence and "began with 24 images, now there are 25" in sentence


def test_files_have_changed_places(own):
    """Two pictures have each other's names: refused with both names, each class would get the other's picture."""
    (own.photos / "03.png").rename(own.photos / "x")
    (own.photos / "05.png").rename(own.photos / "03.png")
    (own.photos / "x").rename(own.photos / "05.png")
    sentence = sentence_of(own.resume())
    assert "2 files have changed places since the run began, such as '03.png' and '05.png'" in sentence


def test_files_are_numbered_anew(own):
    """A picture is deleted and those behind it are renamed: refused with both names."""
    (own.photos / "03.png").unlink()
    for number in range(4, 24):
        (own.photos / f"{number:02d}.png").rename(own.photos / f"{number - 1:02d}.png")
    sentence = sentence_of(own.resume())
    assert "'03.png' is now the image that '04.png' was when the run began" in sentence
    assert own.steps() == [0]


def test_pictures_of_one_size_are_numbered_anew(tmp_path):
    """Pictures whose files all have the same size, of which one is deleted: sizes tell nothing, the content does."""
    photos = tmp_path / "photos"
    write_photos(photos, 8)
    for path in sorted(photos.iterdir()):
        Image.open(path).convert("RGB").resize((20, 16)).save(path.with_suffix(".bmp"))
        path.unlink()
    flags = flags_of(tmp_path / "run", photos, classifier_init="raw_fixed_bn", max_steps=0)
    assert run_script("pretrain", *flags).status == 0
    (photos / "03.bmp").unlink()
    for number in range(4, 8):
        (photos / f"{number:02d}.bmp").rename(photos / f"{number - 1:02d}.bmp")
    sentence = sentence_of(run_script("pretrain", *flags))
    assert "'03.bmp' is now the image that '04.bmp' was when the run began" in sentence


def test_pictures_that_stopped_a_first_start_are_taken_away(tmp_path):
    """The start ended for unreadable pictures, before it saved anything: without them the same command runs."""
    write_photos(tmp_path / "photos", 6)
    (tmp_path / "photos" / "torn.png").write_bytes(b"no picture")
    flags = flags_of(tmp_path / "run", tmp_path / "photos", classifier_init="raw_fixed_bn", max_steps=0)
    assert "1 of 7 images cannot be read" in sentence_of(run_script("pretrain", *flags))
    (tmp_path / "photos" / "torn.png").unlink()
    finished = run_script("pretrain", *flags)
    assert finished.status == 0, finished.output
    assert "6 instances = classes" in finished.stderr
    assert not (tmp_path / "run" / "bad_files.txt").exists()
    assert (tmp_path / "run" / "manifest.tsv").read_text().startswith("# 6 images\n")


def test_names_with_escape_codes(tmp_path):
    """Names of unreadable pictures that would set a terminal's title and clear it: told with every code escaped."""
    write_photos(tmp_path / "photos", 6)
    (tmp_path / "photos" / "\x1b]0;mine\x07\x1b[2J.png").write_bytes(b"no picture")
    flags = flags_of(tmp_path / "run", tmp_path / "photos", classifier_init="raw_fixed_bn", max_steps=0)
    finished = run_script("pretrain", *flags)
    assert r"1 of 7 images cannot be read" in sentence_of(finished)
    assert r"/\x1b]0;mine\x07\x1b[2J.png'" in finished.stderr
    assert "\x1b" not in finished.output and "\x07" not in finished.output


def test_a_manifest_cut_at_a_line_end(own):
    """manifest.tsv without its last lines: not taken for fewer images."""
    path = own.workdir / "manifest.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-5]))
    assert sentence_of(own.resume()).startswith(f"{path}: cut off, it has 19 lines of 24: bring it back from a copy")


def test_a_lost_manifest(own):
    """Without manifest.tsv nobody knows which picture has which class."""
    (own.workdir / "manifest.tsv").unlink()
    assert "is missing, and with it the ids of the images" in sentence_of(own.resume())


def test_record_files_were_exchanged(tmp_path):
    """Other pictures at the same `records:` path: refused with both digests."""
    for name, count in (("one", 24), ("two", 24)):
        write_photos(tmp_path / name, count + (name == "two"))
    (tmp_path / "two" / "00.png").unlink()
    for name in ("one", "two"):
        finished = run_script("prepare", f"--dataset=folder:{tmp_path / name}", f"--output={tmp_path / name}.rec")
        assert finished.status == 0, finished.output
    flags = flags_of(tmp_path / "run", tmp_path, dataset=f"records:{tmp_path}/one.rec", max_steps=0)
    finished = run_script("pretrain", *flags)
    assert finished.status == 0, finished.output
    shutil.rmtree(tmp_path / "one.rec")
    (tmp_path / "two.rec").rename(tmp_path / "one.rec")
    assert "was made with other images under the same --dataset (their digest was " in sentence_of(
        run_script("pretrain", *flags)
    )
