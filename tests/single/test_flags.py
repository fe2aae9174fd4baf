"""The command line: a flag for every field, presets that hold, and mistakes answered in one sentence."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags as absl_flags

from flags import command, evaluation, pretraining
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.launcher import _VARIABLES
from tests.single.test_config import CHANGED

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "flags" / "presets").glob("*.flags"))
COMMANDS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "__init__")
FIELDS = {field.name: field for field in dataclasses.fields(PretrainConfig)}


@pytest.fixture
def values(monkeypatch) -> absl_flags.FlagValues:
    """The flags of `pretrain`, apart from those of this process."""
    values = absl_flags.FlagValues()
    define = {kind: functools.partial(define, flag_values=values) for kind, define in pretraining._DEFINE.items()}
    monkeypatch.setattr(pretraining, "FLAGS", values)
    monkeypatch.setattr(pretraining, "_DEFINE", define)
    pretraining.define()
    return values


def test_every_field_has_a_flag_with_its_default_and_a_description(values):
    assert set(pretraining._DESCRIPTIONS) == set(FIELDS)
    assert set(values) == set(FIELDS)
    for name, field in FIELDS.items():
        assert values[name].default == field.default, name
        assert len(values[name].help) > 10, name
    values(["pretrain"])
    assert pretraining.config_from_flags() == PretrainConfig()


def test_choices_stand_in_the_description(values):
    for name, choices in pretraining._CHOICES.items():
        assert values[name].help.endswith(f"One of: {', '.join(choices)}.")


def test_only_some_flags(monkeypatch):
    values = absl_flags.FlagValues()
    define = {kind: functools.partial(define, flag_values=values) for kind, define in pretraining._DEFINE.items()}
    monkeypatch.setattr(pretraining, "_DEFINE", define)
    pretraining.define(only=("seed", "workdir"))
    assert set(values) == {"seed", "workdir"}


def test_run_flags_are_a_flagfile_that_replays_the_run(values, tmp_path):
    path = tmp_path / "run.flags"
    path.write_text(CHANGED.as_flags())
    assert values(["pretrain", f"--flagfile={path}"]) == ["pretrain"]
    assert pretraining.config_from_flags() == CHANGED


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_a_valid_recipe(values, path):
    assert values(["pretrain", f"--flagfile={path}", "--workdir=run"]) == ["pretrain"]
    config = pretraining.config_from_flags()
    config.validate()
    config.validate_with_data(1437 if config.dataset == "digits" else 5000)
    changed = {name for name, field in FIELDS.items() if getattr(config, name) != field.default}
    lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
    assert len(lines) == len({line.split("=")[0] for line in lines}), "a flag stands twice"
    assert changed, "a preset that changes nothing"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_header_of_a_preset_names_command_hardware_and_numbers(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header == path.read_text().splitlines()[: len(header)], "comments stand at the top"
    text = "\n".join(header)
    name = path.relative_to(ROOT).as_posix()
    assert re.search(rf"^# Command: .*python -m scripts\.\w+ .*--flagfile={name}\b", text, re.MULTILINE)
    assert re.search(r"^# Hardware: +\S", text, re.MULTILINE)
    assert re.search(r"^# Paper: .*ours: +\S", text, re.MULTILINE)


# ------------------------------------------------------------------------------------------------- as a user types it


@pytest.fixture(scope="module")
def no_tensorflow(tmp_path_factory) -> dict[str, str]:
    """An environment in which importing TensorFlow ends the command."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')\n")
    launched = [name for pair in _VARIABLES for name in pair]
    kept = {name: value for name, value in os.environ.items() if name not in launched}
    return {**kept, "PYTHONPATH": str(folder)}


def run(environment: dict[str, str], name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epoch=3"], "--epoch: no such flag; did you mean --epochs?"),
        (["--zzz"], "--zzz: no such flag"),
        (["--epochs=three"], "--epochs=three: must be a whole number"),
        (["--temperature=warm"], "--temperature=warm: must be a number"),
        (["--mlp_head=perhaps"], "--mlp_head=perhaps: must be true or false"),
        (["--workdir"], "Missing value for flag --workdir"),
        (["epochs=3"], "'epochs=3' is not a flag: every setting is given as --name=value"),
        (["--epochs", "3", "4"], "'4' is not a flag: every setting is given as --name=value"),
        (["--flagfile=no/such.flags"], "--flagfile: cannot read no/such.flags (No such file or directory)"),
        ([], "--workdir is missing: name the folder that receives the run"),
        (["--workdir=run", "--stem=big"], "--stem=big: must be one of imagenet, small"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_status_2(no_tensorflow, arguments, sentence):
    result = run(no_tensorflow, "pretrain", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {sentence}\n"


def test_too_many_workers_for_the_batch(no_tensorflow):
    environment = {**no_tensorflow, "HOROVOD_RANK": "0", "HOROVOD_SIZE": "5"}
    result = run(environment, "pretrain", "--workdir=run", "--batch_size=4")
    assert (result.returncode, result.stderr) == (2, "error: --batch_size=4: must be at least the 5 workers\n")


SUBJECT = {"benchmark": ("classifier",)}


def test_help_of_benchmark_names_its_subjects(no_tensorflow):
    result = run(no_tensorflow, "benchmark", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for subject in ("input", "classifier", "step", "hard_negatives", "memory", "scaling"):
        assert re.search(rf"^  {subject}  +\w", result.stdout, re.MULTILINE), subject


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_the_command_does_and_its_flags(no_tensorflow, name):
    result = run(no_tensorflow, name, *SUBJECT.get(name, ()), "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"python -m scripts.{name}" in result.stdout
    assert "\nFlags:\n" in result.stdout
    assert re.search(r"^ +--\w+: \S", result.stdout, re.MULTILINE)


def test_help_of_pretrain_shows_every_flag(no_tensorflow):
    shown = run(no_tensorflow, "pretrain", "-h").stdout
    for name, field in FIELDS.items():
        assert re.search(rf"^ +--(\[no\])?{name}: \S", shown, re.MULTILINE), name
        if field.default not in (None, ""):
            default = re.escape(str(field.default).lower())
            assert re.search(rf"--(\[no\])?{name}: (.(?!\n  -))*?\n +\(default: '{default}(\.0)?'\)", shown, re.DOTALL)


@pytest.mark.parametrize("ending", ["exit", "_exit"])
def test_other_ranks_leave_the_word_to_rank_0(monkeypatch, capsys, ending):
    """With TensorFlow loaded Horovod's shutdown would wait for the others: the process ends at once."""
    slept = []

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setenv("HOROVOD_RANK", "1")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setattr(command.time, "sleep", slept.append)
    modules = {name: module for name, module in sys.modules.items() if name != "tensorflow"}
    monkeypatch.setattr(command.sys, "modules", modules if ending == "exit" else {**modules, "tensorflow": None})
    monkeypatch.setattr(command.os, "_exit", leave if ending == "_exit" else None)
    monkeypatch.setattr(command.sys, "exit", leave if ending == "exit" else None)
    with pytest.raises(SystemExit) as end:
        command._fail_once("--seed=x: wrong")
    assert end.value.code == 2
    assert slept == [command._GRACE_SECONDS]
    assert capsys.readouterr().err == "error: rank 1: --seed=x: wrong\n"


# ------------------------------------------------------------------------------------------------------- evaluations


@pytest.fixture
def evaluation_values(monkeypatch) -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    for name in ("runs", "features"):
        absl_flags.DEFINE_string(name, None, "", flag_values=values)
    values(["command"])
    monkeypatch.setattr(evaluation, "FLAGS", values)
    return values


def test_named_runs(evaluation_values):
    evaluation_values.runs = "a=runs/a,with prior=runs/b=1"
    assert evaluation.named_runs() == {"a": "runs/a", "with prior": "runs/b=1"}


@pytest.mark.parametrize("text", ["runs/a", "a=", "=runs/a", "a=runs/a,", "a=runs/a,a=runs/b"])
def test_runs_without_names(evaluation_values, text):
    evaluation_values.runs = text
    with pytest.raises(UserError, match=f"^--runs={text}: must be NAME=WORKDIR,NAME=WORKDIR,... with different names$"):
        evaluation.named_runs()


def test_required_and_choice(evaluation_values):
    with pytest.raises(UserError, match=r"^--runs is missing$"):
        evaluation.required("runs")
    evaluation_values.features = "words"
    with pytest.raises(UserError, match=r"^--features=words: must be one of backbone, pixels$"):
        evaluation.choice("features", ("backbone", "pixels"))
    evaluation_values.features = "pixels"
    assert evaluation.choice("features", ("backbone", "pixels")) == "pixels"


def test_answer_is_printed_last_and_written(tmp_path, capsys):
    evaluation.answer("knn_eval", str(tmp_path), {"top1": 0.5})
    assert capsys.readouterr().out == '{"top1": 0.5}\n'
    assert (tmp_path / "knn_eval.json").read_text() == '{"top1": 0.5}'
