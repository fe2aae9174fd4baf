"""Whose workdir a folder is: which run may begin or go on there, and what of an earlier one makes way."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.pretraining.opening import origin_of
from instcls_tf.run.checkpoint_choice import choose
from instcls_tf.run.checkpoint_manifest import Origin, difference
from instcls_tf.run.workdir import (
    NOT_RECIPE,
    begin_run,
    continue_run,
    has_checkpoints,
    holds_this_run,
    load_run,
    run_flags_path,
    run_id,
    same_dataset,
)
from instcls_tf.workdir_files import BAD_FILES_NAME, CONTENTS_NAME, MANIFEST_NAME, METRICS_NAME, STARTING_WEIGHTS_NAME
from tests.recipes import CHANGED, OLD_RUN_FLAGS, VALID, write_run


def test_an_empty_or_new_folder_starts_a_run(tmp_path):
    assert not holds_this_run(VALID.replace(workdir=str(tmp_path)))
    assert not holds_this_run(VALID.replace(workdir=str(tmp_path / "not" / "yet")))
    assert list(tmp_path.iterdir()) == []


def save_something(folder) -> None:
    """What every checkpoint has, whole or not."""
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "ckpt-00000004.index").touch()


def test_a_run_that_has_saved_nothing_makes_way(tmp_path):
    write_run(tmp_path, VALID)
    assert holds_this_run(VALID.replace(workdir=str(tmp_path)))
    assert not holds_this_run(VALID.replace(workdir=str(tmp_path), seed=5))


def test_data_without_an_index_are_nothing_saved(tmp_path):
    """A first save was ended when some of its files had their names; with a record they are of a lost one."""
    write_run(tmp_path, VALID)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-00000002.data-00000-of-00003").touch()
    other = VALID.replace(workdir=str(tmp_path), seed=5)
    assert not has_checkpoints(str(tmp_path)) and not holds_this_run(other)
    assert choose(str(tmp_path)) == (None, ())
    record = tmp_path / "checkpoints" / "checkpoint"
    record.write_text('model_checkpoint_path: "ckpt-00000002"')
    for refuses in (lambda: holds_this_run(other), lambda: choose(str(tmp_path))):
        with pytest.raises(UserError):
            refuses()
    record.unlink()
    (tmp_path / "checkpoints" / "ckpt-00000002.index").touch()
    assert has_checkpoints(str(tmp_path))


def test_an_extension_may_only_grow(tmp_path):
    begin_run(VALID.replace(workdir=str(tmp_path)))
    save_something(tmp_path)
    run = run_id(str(tmp_path))
    for extend_epochs in (0, 3, 5):
        config = VALID.replace(workdir=str(tmp_path), extend_epochs=extend_epochs)
        assert holds_this_run(config)
        assert continue_run(config) == (extend_epochs > 0)
        assert load_run(str(tmp_path)) == config and run_id(str(tmp_path)) == run
    with pytest.raises(UserError, match="belongs to a run with --extend_epochs=5, this one has --extend_epochs=3"):
        holds_this_run(config.replace(extend_epochs=3))


def test_the_recipe_follows_where_the_images_lie_and_where_the_run_ends(tmp_path):
    """What replays a finished run must not stop where its first start did, nor look for its images where they were."""
    first = VALID.replace(workdir=str(tmp_path), max_steps=100, data_dir="/old", log_every=5)
    begin_run(first)
    save_something(tmp_path)
    run = run_id(str(tmp_path))
    config = first.replace(max_steps=None, data_dir="/new", max_bad_fraction=0.05, log_every=7)
    assert holds_this_run(config) and not continue_run(config)
    assert load_run(str(tmp_path)) == first.replace(max_steps=None, data_dir="/new", max_bad_fraction=0.05)
    assert run_id(str(tmp_path)) == run
    before = Path(run_flags_path(str(tmp_path))).stat()
    assert not continue_run(config.replace(log_every=9))
    assert Path(run_flags_path(str(tmp_path))).stat() == before, "nothing to write"


def test_an_earlier_versions_recipe_keeps_its_meaning_when_it_is_continued(tmp_path):
    Path(run_flags_path(str(tmp_path))).write_text(OLD_RUN_FLAGS)
    before = load_run(str(tmp_path))
    config = PretrainConfig(workdir=str(tmp_path), dataset="digits", epochs=3, color_strength=0.5, max_steps=5)
    for fraction in (1.0, 0.875):
        config = config.replace(max_steps=config.max_steps + 1, center_crop_fraction=fraction)
        assert holds_this_run(config) and not continue_run(config)
        assert load_run(str(tmp_path)) == before.replace(max_steps=config.max_steps, workdir=str(tmp_path))


def test_checkpoints_of_nobody_knows_what(tmp_path):
    save_something(tmp_path)
    with pytest.raises(UserError) as refusal:
        holds_this_run(VALID.replace(workdir=str(tmp_path)))
    assert str(refusal.value) == (
        f"--workdir={tmp_path}: has checkpoints, but its run.flags is missing: bring it back from a copy, or begin"
        f" another run in another folder"
    )


def test_a_folder_is_the_same_under_all_its_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for path in ("/home/me/photos", "/home/me/photos/", "/home//me/./photos", "~/photos/"):
        assert same_dataset(f"folder:{path}") == "folder:/home/me/photos"
    assert same_dataset("records:a/") == "records:a"
    for dataset in ("digits", "imagenet2012", "mnist:3.0.1", "folder:"):
        assert same_dataset(dataset) == dataset
    write_run(tmp_path, VALID.replace(dataset="folder:/data/x/"))
    save_something(tmp_path)
    assert holds_this_run(VALID.replace(workdir=str(tmp_path), dataset="folder:/data/x"))


@pytest.mark.parametrize("flag", ["init", "extend_from"])
def test_what_a_run_began_from_is_the_same_under_all_its_names(tmp_path, monkeypatch, flag):
    """Also to a checkpoint, of an earlier version as well, which has the name that it was saved under."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = VALID.replace(workdir=str(tmp_path))
    write_run(tmp_path, config.replace(**{flag: "a/start"}))
    save_something(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    for name in ("./a/start", f"{tmp_path}/a//start/", "~/a/start", "link/start"):
        again = config.replace(**{flag: name})
        assert holds_this_run(again)
        wanted = origin_of(again, open_source("digits"))
        assert not difference(Origin(recipe={**wanted.recipe, flag: "a/start"}), wanted)
    for other in ("a/other", None):
        with pytest.raises(UserError, match=f"belongs to a run with --{flag}=a/start, this one has --{flag}={other}:"):
            holds_this_run(config.replace(**{flag: other}))


def test_each_run_has_an_id(tmp_path):
    ids = []
    for name in "ab":
        begin_run(VALID.replace(workdir=str(tmp_path / name)))
        ids.append(run_id(str(tmp_path / name)))
        assert load_run(str(tmp_path / name)) == VALID.replace(workdir=str(tmp_path / name))
    assert len(ids[0]) == len(ids[1]) == 16 and ids[0] != ids[1]
    write_run(tmp_path, VALID)
    assert run_id(str(tmp_path)) == "", "an earlier version's"


OF_THE_RUN = (MANIFEST_NAME, CONTENTS_NAME, BAD_FILES_NAME)


def test_a_new_run_does_not_take_the_ids_of_the_one_before(tmp_path):
    results = {"report.json", "knn_eval.json", "linear_eval.json", "finetune.json", "detect.json"}
    for name in results:
        (tmp_path / name).touch()  # a user's: no run has begun there
    assert not holds_this_run(VALID.replace(workdir=str(tmp_path)))
    begin_run(VALID.replace(workdir=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"run.flags", *results}
    for name in OF_THE_RUN:
        (tmp_path / name).touch()
    assert not holds_this_run(VALID.replace(workdir=str(tmp_path), seed=1))
    begin_run(VALID.replace(workdir=str(tmp_path), seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["run.flags"]


@pytest.mark.parametrize("name", [*OF_THE_RUN, METRICS_NAME, STARTING_WEIGHTS_NAME])
def test_files_of_another_program_are_left_alone(tmp_path, name):
    """A run would remove or overwrite what bears the name of a file of its own."""
    (tmp_path / name).write_text('{"step": 1, "loss": 0.5}\n')
    with pytest.raises(UserError) as refusal:
        holds_this_run(VALID.replace(workdir=str(tmp_path)))
    assert str(refusal.value) == (
        f"--workdir={tmp_path}: holds a {name}, which a run would replace, and no run.flags of a run: wanted another"
        f" folder, or that file somewhere else"
    )
    begin_run(VALID.replace(workdir=str(tmp_path)))
    assert (tmp_path / name).read_text() == '{"step": 1, "loss": 0.5}\n'
    write_run(tmp_path, VALID.replace(workdir=str(tmp_path)))
    assert holds_this_run(VALID.replace(workdir=str(tmp_path)))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PretrainConfig)])
def test_continues_the_same_recipe_only(tmp_path, field):
    write_run(tmp_path, VALID.replace(workdir="elsewhere"))
    save_something(tmp_path)
    before, now = getattr(load_run(str(tmp_path)), field), getattr(CHANGED, field)
    config = VALID.replace(workdir=str(tmp_path))
    if field in NOT_RECIPE:
        assert holds_this_run(config if field == "workdir" else config.replace(**{field: now}))
        return
    with pytest.raises(UserError) as refusal:
        holds_this_run(config.replace(**{field: now}))
    longer = ", and --extend_epochs=N with them for N epochs more" if field in ("epochs", "exposures") else ""
    assert str(refusal.value) == (
        f"--workdir={tmp_path} belongs to a run with --{field}={before}, this one has --{field}={now}:"
        f" give the same flags to continue it{longer}, or another folder"
    )
    with pytest.raises(UserError, match=r"give the same flags to continue it, or another folder$"):
        holds_this_run(config.replace(**{field: now, "seed": 5, "momentum": 0.5}))


def test_a_file_is_no_workdir(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(UserError) as refusal:
        holds_this_run(VALID.replace(workdir=str(path)))
    assert str(refusal.value) == f"--workdir={path}: is a file, not a folder"
    with pytest.raises(UserError) as refusal:
        holds_this_run(VALID.replace(workdir=str(path / "below")))
    assert str(refusal.value) == f"--workdir={path}/below: cannot write to {path}"


@pytest.mark.parametrize("holds_run", [False, True])
def test_a_folder_without_permission(tmp_path, monkeypatch, holds_run):
    if holds_run:
        write_run(tmp_path, VALID)
    # Root, as whom containers run, may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path) or not mode & os.W_OK)
    with pytest.raises(UserError) as refusal:
        holds_this_run(VALID.replace(workdir=str(tmp_path)))
    assert str(refusal.value) == f"--workdir={tmp_path}: cannot write to {tmp_path}"
