"""run.flags: it brings every field back, older ones keep their meaning, and whose workdir a folder is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flags.sweep import config_of
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.run.checkpoint_choice import choose
from instcls_tf.run.workdir import (
    NOT_RECIPE,
    begin_run,
    continue_run,
    has_checkpoints,
    load_run,
    refuse_other_recipe,
    run_flags_path,
    run_id,
    same_dataset,
)
from instcls_tf.workdir_files import BAD_FILES_NAME, CONTENTS_NAME, MANIFEST_NAME, METRICS_NAME, STARTING_WEIGHTS_NAME
from tests.commands import ROOT
from tests.recipes import CHANGED, VALID


def write_run(folder, config: PretrainConfig) -> str:
    path = run_flags_path(str(folder))
    Path(path).write_text(config.as_flags())
    return path


def test_run_flags_bring_every_field_back(tmp_path):
    for field in dataclasses.fields(PretrainConfig):
        assert getattr(CHANGED, field.name) != field.default, f"{field.name} is not changed"
    write_run(tmp_path, CHANGED)
    loaded = load_run(str(tmp_path))
    assert loaded == CHANGED
    for field in dataclasses.fields(PretrainConfig):  # 1 == 1.0 == True
        assert type(getattr(loaded, field.name)) is type(getattr(CHANGED, field.name)), field.name


def test_run_flags_bring_the_defaults_back(tmp_path):
    write_run(tmp_path, VALID)
    assert load_run(str(tmp_path)) == VALID


def test_run_flags_may_have_comments_and_empty_lines(tmp_path):
    path = write_run(tmp_path, VALID)
    Path(path).write_text("# mine\n\n--seed=4\ncenter_crop_fraction=0.5\n# end\n")
    assert load_run(str(tmp_path)) == PretrainConfig(seed=4, center_crop_fraction=0.5)


@pytest.mark.parametrize(("augmentation", "before"), [("simclr", 1.0), ("digits", 0.5), ("none", 0.5)])
def test_older_run_flags_keep_their_meaning(tmp_path, augmentation, before):
    """Before `center_crop_fraction` runs were judged on whole squares, and a jitter of 1 was what is 0.5 today."""
    config = VALID.replace(workdir=str(tmp_path), color_strength=0.5, augmentation=augmentation)
    path = write_run(tmp_path, config)
    lines = [line for line in Path(path).read_text().splitlines() if "center_crop_fraction" not in line]
    Path(path).write_text("\n".join(lines).replace("--color_strength=0.5", f"--color_strength={before}"))
    assert load_run(str(tmp_path)) == config.replace(center_crop_fraction=1.0)
    for fraction in (1.0, 0.875):  # the latter is what the same command, without the flag, says today
        goes_on = config.replace(center_crop_fraction=fraction)
        assert refuse_other_recipe(goes_on), "the same pixels: the run goes on"


@pytest.mark.parametrize("change", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")])
def test_run_flags_that_an_editor_of_another_system_saved(tmp_path, change):
    path = Path(write_run(tmp_path, CHANGED))
    path.write_bytes(change(path.read_bytes()))
    assert load_run(str(tmp_path)) == CHANGED


# Written before there was a mark at the end, and before --online_knn_every.
OLD_RUN_FLAGS = "--workdir=run\n--dataset=digits\n--epochs=3\n--seed=0\n--log_every=10\n--checkpoint_every=1\n"


@pytest.mark.parametrize("text", [OLD_RUN_FLAGS, OLD_RUN_FLAGS + "--online_knn_every=0\n--max_steps=5\n"])
def test_run_flags_without_a_mark_at_the_end_are_read(tmp_path, text):
    Path(run_flags_path(str(tmp_path))).write_text(text)
    then = PretrainConfig(workdir="run", dataset="digits", epochs=3, center_crop_fraction=1.0, color_strength=0.5)
    assert load_run(str(tmp_path)).replace(max_steps=None) == then


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ("--workdir=run\n--dataset=digits\n", "cut off"),
        (OLD_RUN_FLAGS.removesuffix("\n"), "cut off"),
        (OLD_RUN_FLAGS + "--online_knn_every=1", "cut off"),
        (VALID.as_flags().partition("--batch_size")[0], "cut off"),
        (VALID.as_flags().partition("96\n--views")[0], "cut off"),
    ],
)
def test_run_flags_that_are_empty_or_cut_are_refused(tmp_path, text, what):
    path = run_flags_path(str(tmp_path))
    Path(path).write_text(text)
    wanted = "all flags of the run: bring it back from a copy, or begin another run in another folder"
    for read in (lambda: load_run(str(tmp_path)), lambda: refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))):
        with pytest.raises(UserError) as refusal:
            read()
        assert str(refusal.value) == f"{path}: {what}, wanted {wanted}"


def test_run_flags_are_written_whole_or_not_at_all(tmp_path):
    code = (
        "import resource; from instcls_tf.config import PretrainConfig; from instcls_tf.run.workdir import begin_run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"begin_run(PretrainConfig(workdir={str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"UserError: --workdir={tmp_path}: cannot write there (File too large)" in done.stderr
    assert not os.path.exists(run_flags_path(str(tmp_path)))


@pytest.mark.parametrize("name", [b"caf\xe9", "été".encode(), b"a\xe2\x80\xa8b", b"a\x85b", b"a\x0cb", b" a=b# "])
def test_run_flags_bring_back_paths_of_any_bytes(tmp_path, name):
    config = VALID.replace(dataset="folder:/" + os.fsdecode(name), workdir=str(tmp_path / "run"))
    config.validate()
    begin_run(config)
    assert load_run(config.workdir) == config
    assert b"--dataset=folder:/" + name + b"\n" in Path(run_flags_path(config.workdir)).read_bytes()


@pytest.mark.parametrize("field", ["dataset", "data_dir", "tfds_split"])
@pytest.mark.parametrize("end", ["\n", "\r"])
def test_flags_of_several_lines_are_refused(field, end):
    with pytest.raises(UserError) as refusal:
        VALID.replace(**{field: f"a{end}b"}).validate()
    assert str(refusal.value) == f"--{field}={f'a{end}b'!r}: must be one line"


def test_no_run_to_load(tmp_path):
    with pytest.raises(UserError) as refusal:
        load_run(str(tmp_path))
    assert str(refusal.value) == f"--workdir={tmp_path}: holds no run ({tmp_path}/run.flags: No such file or directory)"


def both_ways(config: PretrainConfig) -> list[PretrainConfig]:
    """A run's recipe as who has its workdir reads it, and who has its `run.flags`, from Python and by a command."""
    path = run_flags_path(config.workdir)
    return [load_run(config.workdir), PretrainConfig.from_flagfile(path), config_of([f"--flagfile={path}"])]


@pytest.mark.parametrize("name", [b"caf\xe9", "été".encode(), b"a\xe2\x80\xa8b", b"a\x85", b"a b# ", b"a\x0c"])
def test_run_flags_replay_a_run_on_paths_of_any_bytes(tmp_path, name):
    config = CHANGED.replace(dataset="folder:/" + os.fsdecode(name), workdir=str(tmp_path))
    begin_run(config)
    assert both_ways(config) == [config] * 3


def test_run_flags_that_a_user_has_changed_mean_the_same_both_ways(tmp_path):
    config = VALID.replace(workdir=str(tmp_path))
    path = Path(write_run(tmp_path, config))
    changed = {"--mlp_head=true": "  // mine\n\t--nomlp_head", "--epochs=": "\n -epochs\n7\n# was "}
    text = path.read_text()
    for line, others in changed.items():
        assert line in text
        text = text.replace(line, others)
    path.write_text(text)
    assert both_ways(config) == [config.replace(mlp_head=False, epochs=7)] * 3


@pytest.mark.parametrize("augmentation", ["simclr", "digits"])
def test_older_run_flags_mean_the_same_both_ways(tmp_path, augmentation):
    config = VALID.replace(workdir=str(tmp_path), color_strength=0.5, augmentation=augmentation)
    path = Path(write_run(tmp_path, config))
    lines = [line for line in path.read_text().splitlines(keepends=True) if "center_crop_fraction" not in line]
    path.write_text("".join(lines))
    strength = 0.25 if augmentation == "simclr" else 0.5
    assert both_ways(config) == [config.replace(center_crop_fraction=1.0, color_strength=strength)] * 3
    own = tmp_path / "own.flags"
    own.write_text("--augmentation=simclr\n--color_strength=0.5\n# end\n")
    assert PretrainConfig.from_flagfile(str(own)) == PretrainConfig(color_strength=0.5), "a user's own, of today"


@pytest.mark.parametrize("line", ["--seed", "--seed=four", "--mlp_head=yes", "--noseed"])
def test_run_flags_that_cannot_be_understood(tmp_path, line):
    path = write_run(tmp_path, VALID)
    Path(path).write_text(f"--epochs=3\n{line}\n")
    with pytest.raises(UserError) as refusal:
        load_run(str(tmp_path))
    assert str(refusal.value) == f"{path}: cannot understand the line {line!r}"


@pytest.mark.parametrize(("line", "name"), [("--sed=4", "sed"), ("seed 4", "seed 4")])
def test_run_flags_with_a_line_that_is_no_setting(tmp_path, line, name):
    path = write_run(tmp_path, VALID)
    Path(path).write_text(f"--epochs=3\n{line}\n")
    with pytest.raises(UserError) as refusal:
        load_run(str(tmp_path))
    assert str(refusal.value) == f"{path}: {name!r} is no setting of PretrainConfig, did you mean 'seed'?"


def test_an_empty_or_new_folder_starts_a_run(tmp_path):
    assert not refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))
    assert not refuse_other_recipe(VALID.replace(workdir=str(tmp_path / "not" / "yet")))
    assert list(tmp_path.iterdir()) == []


def save_something(folder) -> None:
    """What every checkpoint has, whole or not."""
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "ckpt-00000004.index").touch()


def test_a_run_that_has_saved_nothing_makes_way(tmp_path):
    write_run(tmp_path, VALID)
    assert refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))
    assert not refuse_other_recipe(VALID.replace(workdir=str(tmp_path), seed=5))


def test_data_without_an_index_are_nothing_saved(tmp_path):
    """A first save was ended when some of its files had their names; with a record they are of a lost one."""
    write_run(tmp_path, VALID)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-00000002.data-00000-of-00003").touch()
    other = VALID.replace(workdir=str(tmp_path), seed=5)
    assert not has_checkpoints(str(tmp_path)) and not refuse_other_recipe(other)
    assert choose(str(tmp_path)) == (None, ())
    record = tmp_path / "checkpoints" / "checkpoint"
    record.write_text('model_checkpoint_path: "ckpt-00000002"')
    for refuses in (lambda: refuse_other_recipe(other), lambda: choose(str(tmp_path))):
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
        assert refuse_other_recipe(config)
        assert continue_run(config) == (extend_epochs > 0)
        assert load_run(str(tmp_path)) == config and run_id(str(tmp_path)) == run
    with pytest.raises(UserError, match="belongs to a run with --extend_epochs=5, this one has --extend_epochs=3"):
        refuse_other_recipe(config.replace(extend_epochs=3))


def test_the_recipe_follows_where_the_images_lie_and_where_the_run_ends(tmp_path):
    """What replays a finished run must not stop where its first start did, nor look for its images where they were."""
    first = VALID.replace(workdir=str(tmp_path), max_steps=100, data_dir="/old", log_every=5)
    begin_run(first)
    save_something(tmp_path)
    run = run_id(str(tmp_path))
    config = first.replace(max_steps=None, data_dir="/new", log_every=7)
    assert refuse_other_recipe(config) and not continue_run(config)
    assert load_run(str(tmp_path)) == first.replace(max_steps=None, data_dir="/new")
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
        assert refuse_other_recipe(config) and not continue_run(config)
        assert load_run(str(tmp_path)) == before.replace(max_steps=config.max_steps, workdir=str(tmp_path))


def test_checkpoints_of_nobody_knows_what(tmp_path):
    save_something(tmp_path)
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))
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
    assert refuse_other_recipe(VALID.replace(workdir=str(tmp_path), dataset="folder:/data/x"))


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
    assert not refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))
    begin_run(VALID.replace(workdir=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"run.flags", *results}
    for name in OF_THE_RUN:
        (tmp_path / name).touch()
    assert not refuse_other_recipe(VALID.replace(workdir=str(tmp_path), seed=1))
    begin_run(VALID.replace(workdir=str(tmp_path), seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["run.flags"]


@pytest.mark.parametrize("name", [*OF_THE_RUN, METRICS_NAME, STARTING_WEIGHTS_NAME])
def test_files_of_another_program_are_left_alone(tmp_path, name):
    """A run would remove or overwrite what bears the name of a file of its own."""
    (tmp_path / name).write_text('{"step": 1, "loss": 0.5}\n')
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))
    assert str(refusal.value) == (
        f"--workdir={tmp_path}: holds a {name}, which a run would replace, and no run.flags of a run: wanted another"
        f" folder, or that file somewhere else"
    )
    begin_run(VALID.replace(workdir=str(tmp_path)))
    assert (tmp_path / name).read_text() == '{"step": 1, "loss": 0.5}\n'
    write_run(tmp_path, VALID.replace(workdir=str(tmp_path)))
    assert refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PretrainConfig)])
def test_continues_the_same_recipe_only(tmp_path, field):
    write_run(tmp_path, VALID.replace(workdir="elsewhere"))
    save_something(tmp_path)
    before, now = getattr(load_run(str(tmp_path)), field), getattr(CHANGED, field)
    config = VALID.replace(workdir=str(tmp_path))
    if field in NOT_RECIPE:
        assert refuse_other_recipe(config if field == "workdir" else config.replace(**{field: now}))
        return
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(config.replace(**{field: now}))
    assert str(refusal.value) == (
        f"--workdir={tmp_path} belongs to a run with --{field}={before}, this one has --{field}={now}:"
        " give the same flags to continue it, or another folder"
    )


def test_a_file_is_no_workdir(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(VALID.replace(workdir=str(path)))
    assert str(refusal.value) == f"--workdir={path}: is a file, not a folder"
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(VALID.replace(workdir=str(path / "below")))
    assert str(refusal.value) == f"--workdir={path}/below: cannot write to {path}"


@pytest.mark.parametrize("holds_run", [False, True])
def test_a_folder_without_permission(tmp_path, monkeypatch, holds_run):
    if holds_run:
        write_run(tmp_path, VALID)
    # Root, as whom containers run, may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path) or not mode & os.W_OK)
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))
    assert str(refusal.value) == f"--workdir={tmp_path}: cannot write to {tmp_path}"
