"""run.flags: it brings every field back, older ones keep their meaning, and what is cut or changed is told."""

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
from instcls_tf.run.workdir import (
    begin_run,
    holds_this_run,
    load_run,
    run_flags_path,
)
from tests.commands import ROOT
from tests.recipes import CHANGED, OLD_RUN_FLAGS, VALID, write_run


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
        assert holds_this_run(goes_on), "the same pixels: the run goes on"


@pytest.mark.parametrize("change", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")])
def test_run_flags_that_an_editor_of_another_system_saved(tmp_path, change):
    path = Path(write_run(tmp_path, CHANGED))
    path.write_bytes(change(path.read_bytes()))
    assert load_run(str(tmp_path)) == CHANGED


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
    for read in (lambda: load_run(str(tmp_path)), lambda: holds_this_run(VALID.replace(workdir=str(tmp_path)))):
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
