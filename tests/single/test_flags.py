"""The command line: a flag for every field, presets that hold, and mistakes answered in one sentence."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags as absl_flags

from flags import command, evaluation, pretraining, search
from instcls_tf.config import CHOICES, PretrainConfig
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.errors import UserError
from instcls_tf.run.precision import with_precision
from tests.commands import TIMEOUT, run_calls
from tests.recipes import CHANGED

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "flags" / "presets").glob("*.flags"))
COMMANDS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "__init__")
FIELDS = {field.name: field for field in dataclasses.fields(PretrainConfig)}


@pytest.fixture
def values() -> absl_flags.FlagValues:
    """The flags of `pretrain`, apart from those of this process."""
    values = absl_flags.FlagValues()
    pretraining.define(flag_values=values)
    return values


def test_every_field_has_a_flag_with_its_default_and_a_description(values):
    assert set(pretraining.DESCRIPTIONS) == set(FIELDS)
    assert set(values) == set(FIELDS)
    for name, field in FIELDS.items():
        assert values[name].default == field.default, name
        assert len(values[name].help) > 10, name
    values(["pretrain"])
    assert pretraining.config_from_flags(values) == PretrainConfig()


def test_choices_stand_in_the_description(values):
    for name, choices in CHOICES.items():
        assert values[name].help.endswith(f"One of: {', '.join(choices)}.")


def test_only_some_flags():
    values = absl_flags.FlagValues()
    pretraining.define(only=("seed", "epochs"), flag_values=values)
    assert set(values) == {"seed", "epochs"}
    values(["command", "--seed=3"])
    config = pretraining.config_from_flags(values, workdir="run")
    assert config == PretrainConfig(seed=3, workdir="run")


def test_run_flags_are_a_flagfile_that_replays_the_run(values, tmp_path):
    path = tmp_path / "run.flags"
    path.write_text(CHANGED.as_flags())
    assert values(["pretrain", f"--flagfile={path}"]) == ["pretrain"]
    assert pretraining.config_from_flags(values) == CHANGED


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_a_valid_recipe(values, path):
    assert values(["pretrain", f"--flagfile={path}", "--workdir=run"]) == ["pretrain"]
    config = pretraining.config_from_flags(values)
    assert with_precision(PretrainConfig.from_flagfile(path.stem, workdir="run")) == config
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


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_only_parses_calls_and_answers(name):
    assert len((ROOT / "scripts" / f"{name}.py").read_text().splitlines()) <= 30


# ------------------------------------------------------------------------------------------------- as a user types it


@pytest.fixture(scope="module")
def no_tensorflow(tmp_path_factory) -> dict[str, str]:
    """An environment in which importing TensorFlow ends the command."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')\n")
    assert launched_rank_and_size() is None, "the tests run without a launcher"
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(environment: dict[str, str], name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
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
        (
            ["--workdir=a[1]"],
            r"--workdir=a[1]: holds [ ], which TensorFlow reads as a pattern, wanted a path without any"
            " of [ ] * ? \\",
        ),
        (["--data_dir=a\nb"], r"--data_dir='a\nb': wanted a path without control characters, in UTF-8"),
        (["--stem\x1b[2J=x"], r"--stem\x1b[2J: no such flag"),
        (["--encoder=\x1b[2J", "--workdir=run"], r"--encoder='\x1b[2J': must be one of resnet50, resnet18, resnet10"),
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


# Whose help speaks of files and folders, but which are no paths: prefixes and names stand before those in them.
NO_PATHS = {"dataset", "train_split"}
SUBJECTS = ("input", "classifier", "step", "hard_negatives", "gallery", "memory", "scaling", "duplicates")
# Imports a script, which defines its flags, gives a path to all whose help speaks of one, and shows how they are read.
_READ_PATHS = """
import importlib, json, re, sys
from absl import flags
name, *subject = sys.argv[1:]
importlib.import_module(f"scripts.{name}")
if subject:
    from flags import benchmark
    sys.argv[1:] = subject
    benchmark.take_subject()
modules = flags.FLAGS.flags_by_module_dict()
own = [flag for module in modules if module.startswith("flags.") for flag in modules[module]]
speaks_of_one = re.compile("folder|file|where tfds keeps", re.IGNORECASE)
strings = [flag.name for flag in own if flag.flag_type() == "string" and speaks_of_one.search(flag.help)]
flags.FLAGS(["command", *(f"--{name}=~/x" for name in strings)])
print(json.dumps({name: flags.FLAGS[name].value for name in strings}))
"""


def test_home_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    calls = [[name] for name in COMMANDS if name != "benchmark"] + [["benchmark", subject] for subject in SUBJECTS]
    found = set()
    for call, shown in zip(calls, run_calls(_READ_PATHS, calls, ["flags.command"])):
        assert shown.stderr == "", call
        values = json.loads(shown.stdout)
        assert {name for name, value in values.items() if value != "/home/me/x"} <= NO_PATHS, call
        found |= values.keys()
    assert found == NO_PATHS | {
        "workdir",
        "data_dir",
        "extend_from",
        "output",
        "train_features",
        "test_features",
        "init",
        "cache",
        "picture",
        "simclr",
        "environments",
        "folder",
        "index",
        "doctor",
    }


SUBJECT = {"benchmark": ("classifier",)}


@pytest.fixture(scope="module")
def help_of(no_tensorflow):
    """Runs a command with --help once."""
    return functools.cache(lambda name, *subject: run(no_tensorflow, name, *subject, "--help"))


def test_help_of_benchmark_names_its_subjects(help_of):
    result = help_of("benchmark")
    assert (result.returncode, result.stderr) == (0, "")
    for subject in SUBJECTS:
        assert re.search(rf"^  {subject}  +\w", result.stdout, re.MULTILINE), subject


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_the_command_does_and_its_flags(help_of, name):
    result = help_of(name, *SUBJECT.get(name, ()))
    assert (result.returncode, result.stderr) == (0, "")
    assert f"python -m scripts.{name} " in result.stdout
    assert "\nFlags:\n" in result.stdout
    assert re.search(r"^  --\w+: \w", result.stdout, re.MULTILINE)


def test_help_of_pretrain_shows_every_flag(no_tensorflow, help_of):
    shown = help_of("pretrain").stdout
    assert run(no_tensorflow, "pretrain", "-h").stdout == shown
    for name, field in FIELDS.items():
        assert re.search(rf"^ +--(\[no\])?{name}: \S", shown, re.MULTILINE), name
        if field.default not in (None, ""):
            default = re.escape(str(field.default).lower())
            assert re.search(rf"--(\[no\])?{name}: (.(?!\n  -))*?\n +\(default: '{default}(\.0)?'\)", shown, re.DOTALL)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linear_eval", "crop_flip, digits, none"),
        ("finetune", "top1, mean_per_class"),
        ("detect", "checkpoint, scratch"),
    ],
)
def test_help_lists_the_words_of_a_choice(help_of, name, words):
    assert f" One of: {words}." in " ".join(help_of(name).stdout.split())


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
        command._fail_once(UserError("--seed=x: wrong"))
    assert end.value.code == 2
    assert slept == [command._GRACE_SECONDS]
    assert capsys.readouterr().err == "error: rank 1: --seed=x: wrong\n"


@pytest.mark.parametrize(
    ("define", "wanted"),
    [
        (absl_flags.DEFINE_integer, "a whole number"),
        (absl_flags.DEFINE_list, "values with commas between"),
        (lambda name, *about, flag_values: absl_flags.DEFINE_enum(name, None, ["a"], "", flag_values=flag_values), ""),
    ],
)
def test_a_value_that_no_flag_takes(define, wanted):
    """Whatever kind of flag it is of: one sentence."""
    values = absl_flags.FlagValues()
    define("some", None, "", flag_values=values)
    with pytest.raises(absl_flags.IllegalFlagValueError) as refusal:
        values(["command", '--some="1'])
    assert command.one_sentence(refusal.value, values).startswith(f'--some="1: must be {wanted}')


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["a.jpg,b.jpg", "c, d"], ["a.jpg", "b.jpg", "c", "d"]),
        (['"a,b",c'], ["a,b", "c"]),
        (['"a.jpg', "a\nb.jpg,c"], ['"a.jpg', "a\nb.jpg", "c"]),
        (["there, is.jpg", "also,~"], ["there, is.jpg", "also", os.path.expanduser("~")]),
        ([""], []),
    ],
)
def test_names_of_any_letters(values, names, tmp_path, monkeypatch):
    """What is there is taken whole; the rest is a list, or a name that is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there, is.jpg").touch()
    assert search.names_of(values) == names


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
    evaluation_values.runs = "a=~/runs/a,with prior=runs/b=1"
    assert evaluation.named_runs() == {"a": os.path.expanduser("~/runs/a"), "with prior": "runs/b=1"}
    evaluation_values.runs = "a=runs/*"
    with pytest.raises(UserError, match=r"^--runs=runs/\*: holds \*, which TensorFlow reads as a pattern"):
        evaluation.named_runs()


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
