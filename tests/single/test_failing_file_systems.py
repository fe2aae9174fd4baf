"""Checkpoints on a file system that fails for a moment, or shows late what is there: nothing is lost by it."""

from __future__ import annotations

import builtins
import errno
import glob
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import files
from instcls_tf.config import PretrainConfig
from instcls_tf.data import contents
from instcls_tf.data.folder import open_folder
from instcls_tf.distributed import collectives
from instcls_tf.errors import MachineError, UserError
from instcls_tf.initial import kinds, start
from instcls_tf.pretraining import growth, preflight
from instcls_tf.progress import Progress
from instcls_tf.report import checkpoints
from instcls_tf.report.pictures import load_metrics
from instcls_tf.run import checkpoint, checkpoint_choice, checkpoint_manifest, parts, workdir
from instcls_tf.run.checkpoint_manifest import Origin
from instcls_tf.run.metrics import read_metrics
from instcls_tf.run.parts import Slices
from instcls_tf.run.workdir import begin_run, has_checkpoints
from instcls_tf.sweep.results import read_lines

OWN = Origin("f00d")


class Failing:
    """A function that raises an error the first so many times that it is called for a name."""

    def __init__(
        self, function, name: str, times: float = float("inf"), number: int = errno.ESTALE, of_tensorflow: bool = False
    ):
        self.function, self.name, self.times, self.number, self.calls = function, name, times, number, 0
        self.of_tensorflow = of_tensorflow

    def __call__(self, path, *rest, **named):
        if os.path.basename(str(path)).startswith(self.name) and self.calls < self.times:
            self.calls += 1
            if self.of_tensorflow:
                raise tf.errors.UnknownError(None, None, f"{path}; {os.strerror(self.number)}")
            raise OSError(self.number, os.strerror(self.number), path)
        return self.function(path, *rest, **named)


def state() -> tuple[tf.train.Checkpoint, dict[str, Slices]]:
    return tf.train.Checkpoint(kernel=tf.Variable(tf.range(3.0))), {"rows": Slices(tf.Variable(tf.ones([5, 2])), 0, 5)}


def steps_in(workdir: Path) -> list[int]:
    return [checkpoint_choice.step_of(prefix) for prefix in checkpoint_choice.prefixes(str(workdir))]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run with two checkpoints; nobody waits between two tries."""
    monkeypatch.setattr(files, "_PAUSE_SECONDS", 0.0)
    for step in (7, 9):
        checkpoint.save(str(tmp_path), step, *state(), OWN)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "function", "name", "whole"),
    [
        (checkpoint_manifest, "file_facts", "ckpt-00000009.data", True),
        (checkpoint_manifest, "_content", "ckpt-00000009.json", False),
        (os.path, "getsize", "ckpt-00000009.index", False),
        (os, "listdir", "checkpoints", False),
    ],
)
def test_the_newest_checkpoint_is_not_left_for_a_moment(run, monkeypatch, module, function, name, whole):
    original, newest = getattr(module, function), checkpoint_choice.prefix_of(str(run), 9)
    monkeypatch.setattr(module, function, Failing(original, name, times=1))
    assert checkpoint_choice.choose(str(run), whole, OWN) == (newest, ())
    monkeypatch.setattr(module, function, Failing(original, name))
    with pytest.raises(MachineError, match=rf"/{name}\S*: cannot be read \(Stale file handle\), tried 4 times"):
        checkpoint_choice.choose(str(run), whole, OWN)


def test_a_run_with_checkpoints_does_not_begin_anew(run, monkeypatch):
    """As it would where a folder that cannot be read is taken for one that is not there."""
    monkeypatch.setattr(os, "listdir", Failing(os.listdir, "checkpoints"))
    monkeypatch.setattr(os.path, "isdir", lambda path: False)  # so does the system's, on any error
    with pytest.raises(MachineError):
        has_checkpoints(str(run))


@pytest.mark.parametrize("flag", ["extend_from", "init"])
def test_a_run_that_another_one_starts_from(run, monkeypatch, flag):
    """It is no mistake of the user's: a job whose machine fails is started again."""
    begin_run(PretrainConfig(workdir=str(run)))
    monkeypatch.setattr(os, "listdir", Failing(os.listdir, "checkpoints"))
    with pytest.raises(MachineError, match=r"/checkpoints: cannot be read \(Stale file handle\), tried 4 times"):
        if flag == "init":
            start.read_initial(str(run))
        else:
            growth.find(PretrainConfig(extend_from=str(run)), np.zeros([3, 2], np.uint64), Progress(visible=False))


@pytest.mark.parametrize("kind", [MachineError, UserError])
def test_another_worker_cannot_read_what_a_run_starts_from(monkeypatch, kind):
    def fail(path: str) -> None:
        raise kind(f"--init={path}: cannot be read")

    monkeypatch.setattr(start, "read_arrays", fail)
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    with pytest.raises(UserError, match=r"^worker 1: --init=weights: cannot be read") as refusal:
        start.read_initial("weights")
    assert refusal.type is kind


def test_a_folder_of_checkpoints_that_is_not_to_be_read(run, monkeypatch):
    """As another user's may be."""
    failing = Failing(os.listdir, "checkpoints", number=errno.EACCES)
    monkeypatch.setattr(os, "listdir", failing)
    for read in (has_checkpoints, checkpoint_choice.prefixes):
        with pytest.raises(UserError, match=rf"^{run}/checkpoints: cannot be read \(Permission denied\)$"):
            read(str(run))
    assert failing.calls == 2, "a file system that works has answered"


def test_nothing_is_removed_for_what_cannot_be_read(run, monkeypatch):
    """The save of step 11 is there, but which of the older ones are this run's, and whole, nobody knows."""
    monkeypatch.setattr(checkpoint_manifest, "_content", Failing(checkpoint_manifest._content, "ckpt-00000007.json"))
    with pytest.raises(MachineError):
        checkpoint.save(str(run), 11, *state(), OWN)
    assert steps_in(run) == [7, 9, 11]


def test_what_is_not_to_be_read_is_not_damaged_either(run, monkeypatch):
    """It is asked once: a file system that works has answered."""
    failing = Failing(checkpoint_manifest.file_facts, "ckpt-00000009", number=errno.EACCES)
    monkeypatch.setattr(checkpoint_manifest, "file_facts", failing)
    with pytest.raises(MachineError, match=r"cannot be read \(Permission denied\): whether"):
        checkpoint_choice.choose(str(run), whole=True, wanted=OWN)
    assert failing.calls == 1
    assert not has_checkpoints("/" + "x" * 300), "no folder can have this name"


@pytest.mark.parametrize("is_known", [True, False], ids=["with its manifest", "of an earlier version"])
def test_tensorflow_cannot_read_it(run, monkeypatch, is_known):
    newest = checkpoint_choice.prefix_of(str(run), 9)
    if not is_known:
        os.remove(checkpoint_manifest.path_of(newest))

    def fail(prefix: str):
        raise tf.errors.UnknownError(None, None, f"{prefix}.index; Input/output error")

    monkeypatch.setattr(tf.train, "load_checkpoint", fail)
    with pytest.raises(MachineError, match=r"ckpt-00000009.*; Input/output error"):
        checkpoint.restore(newest, *state(), OWN)
    if not is_known:
        with pytest.raises(MachineError, match=r"cannot be read \(.*Input/output error\): whether the checkpoint of"):
            checkpoint_choice.choose(str(run), whole=True, wanted=OWN)


@pytest.mark.parametrize(
    ("module", "function"), [(checkpoint_manifest, "file_facts"), (tf.train, "load_checkpoint"), (os.path, "getsize")]
)
def test_all_checkpoints_are_listed_even_so(run, monkeypatch, module, function):
    """And those that cannot be read are not called damaged, unless another one is."""
    failing = Failing(getattr(module, function), "ckpt-00000007", of_tensorflow=module is tf.train)
    monkeypatch.setattr(module, function, failing)
    answer = checkpoints.describe(str(run), None, whole=function != "getsize")
    first, second = answer.result["checkpoints"]
    assert "Stale file handle" in first["problem"] and (first["unread"], second["unread"]) == (True, False)
    assert second["problem"] == "" and answer.text.count("\n") == 1
    with pytest.raises(MachineError, match=r"^1 of 2 checkpoint\(s\) may be whole or not: .*Stale file handle"):
        checkpoints.refuse_damage(answer)
    second["problem"] = "cut"
    with pytest.raises(UserError, match=r"^1 of 2 checkpoint\(s\) damaged: cut$") as refusal:
        checkpoints.refuse_damage(answer)
    assert refusal.type is UserError


@pytest.fixture
def begun(run) -> PretrainConfig:
    """What such a run keeps besides: its recipe, its images, what they are, what it has logged."""
    (run / "photos").mkdir()
    for number in range(4):
        (run / "photos" / f"{number}.jpg").write_bytes(b"x" * number)
    config = PretrainConfig(dataset=f"folder:{run}/photos", workdir=str(run))
    workdir.begin_run(config)
    open_folder(config.dataset, "train").write_manifest(config.workdir)
    contents.write(contents.contents_path(config.workdir), np.ones([4, 2], np.uint64))
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    return config


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("manifest.tsv", lambda run: open_folder(run.dataset, "train", run.workdir).num_instances),
        ("contents.npy", lambda run: contents.read(contents.contents_path(run.workdir)).tolist()),
        ("metrics.jsonl", lambda run: read_metrics(run.workdir)),
        ("run.flags", lambda run: workdir.load_run(run.workdir)),
        ("run.flags", lambda run: workdir.run_id(run.workdir)),
        ("run.flags", workdir.holds_this_run),
    ],
    ids=["manifest", "contents", "metrics", "recipe", "run id", "resume"],
)
@pytest.mark.parametrize("function", [(builtins, "open"), (os, "stat")], ids=["open", "stat"])
def test_a_run_is_read_again_and_then_it_is_no_mistake(begun, monkeypatch, name, read, function):
    """Neither is what cannot be read taken for what is not there."""
    before = read(begun)
    original = getattr(*function)
    once, always = Failing(original, name, times=1), Failing(original, name)
    monkeypatch.setattr(*function, once)
    assert read(begun) == before
    assert once.calls or function[0] is os
    if once.calls:  # some do not ask whether the file is there
        monkeypatch.setattr(*function, always)
        with pytest.raises(MachineError, match=rf"/{name}: cannot be read \(Stale file handle\), tried 4 times"):
            read(begun)


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("run.flags", lambda run, _: kinds.kind_of(run.workdir)),
        ("manifest.tsv", lambda run, source: preflight._refuse_other_files(run, source)),
        ("results.jsonl", lambda run, _: read_lines(run.workdir, "results.jsonl")),
        ("metrics.jsonl", lambda run, _: load_metrics(run.workdir)),
    ],
)
def test_what_cannot_be_looked_at_is_not_taken_for_missing(begun, monkeypatch, name, look):
    Path(begun.workdir, "results.jsonl").write_text('{"key": "a trial of hours"}\n')
    source = open_folder(begun.dataset, "train", begun.workdir)
    before, original = look(begun, source), os.stat
    monkeypatch.setattr(os, "stat", Failing(original, name, times=1))
    assert look(begun, source) == before
    monkeypatch.setattr(os, "stat", Failing(original, name))
    with pytest.raises(MachineError, match=rf"/{name}: cannot be read \(Stale file handle\), tried 4 times"):
        look(begun, source)


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.EIO, MachineError, r"photos/3\.jpg: cannot be read \(Input/output error\), tried 4 times"),
        (
            errno.EACCES,
            UserError,
            r"whether '.*/3\.jpg' of the run in --workdir=.* is still there \(Permission denied\)",
        ),
    ],
)
def test_an_image_that_cannot_be_looked_at_is_not_gone(begun, monkeypatch, number, kind, sentence):
    """Those that are gone do not count against --max_bad_fraction."""
    os.remove(Path(begun.workdir, "photos", "3.jpg"))  # of a folder that cannot be listed it is not listed either
    monkeypatch.setattr(os, "lstat", Failing(os.lstat, "3.jpg", times=4, number=number))
    with pytest.raises(UserError, match=sentence) as refusal:
        open_folder(begun.dataset, "train", begun.workdir)
    assert refusal.type is kind
    monkeypatch.undo()
    assert open_folder(begun.dataset, "train", begun.workdir).changes.vanished == ("3.jpg",)


def test_what_a_run_starts_from_is_no_mistake_either(begun, monkeypatch):
    """Weights in a file; another run, above."""
    path = os.path.join(begun.workdir, "x.safetensors")
    Path(path).touch()
    monkeypatch.setattr(builtins, "open", Failing(open, "x.safetensors"))
    with pytest.raises(MachineError, match=r"x\.safetensors: cannot be read as safetensors \(Stale file handle\)"):
        start.read_initial(path)


def test_a_run_that_is_not_to_be_read_has_no_empty_id(begun, monkeypatch):
    failing = Failing(open, "run.flags", times=1, number=errno.EACCES)
    monkeypatch.setattr(builtins, "open", failing)
    with pytest.raises(UserError, match=r"run\.flags cannot be read \(Permission denied\)") as refusal:
        workdir.run_id(begun.workdir)
    assert type(refusal.value) is UserError and failing.calls == 1
    assert workdir.run_id(begun.workdir + "/nothing") == ""


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, MachineError), (errno.ENOSPC, UserError)])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("manifest.tsv", lambda run: open_folder(run.dataset, "train").write_manifest(run.workdir)),
        ("contents.npy", lambda run: contents.write(contents.contents_path(run.workdir), np.ones([4, 2], np.uint64))),
        ("run.flags", workdir.begin_run),
        ("x.json", lambda run: files.write(f"{run.workdir}/x.json", b"")),
    ],
)
def test_a_disk_that_is_full_is_a_mistake_and_one_that_fails_is_none(begun, monkeypatch, number, kind, name, write):
    (Path(begun.workdir) / "manifest.tsv").unlink()
    monkeypatch.setattr(builtins, "open", Failing(open, f"{name}.new", number=number))
    with pytest.raises(UserError) as refusal:
        write(begun)
    assert type(refusal.value) is kind and os.strerror(number) in str(refusal.value)


# -------------------------------------------------------------------------------------------- parts that are seen late


def in_chunks(monkeypatch, between) -> None:
    """Has tensors written in two parts each, as two workers write them, and calls something before they are merged."""
    monkeypatch.setattr(parts, "CHUNK_ROWS", 3)
    merge = checkpoint._merge
    monkeypatch.setattr(checkpoint, "_merge", lambda folder, *rest: (between(Path(folder)), merge(folder, *rest)))


@pytest.mark.parametrize("name", ["rank00000-00001.index", "rank00000-00000.data-00000-of-00001", "replicated.index"])
def test_a_part_that_is_gone_is_no_part_of_a_save(run, monkeypatch, name):
    """One of two halves makes a tensor of the right shape all the same, which cannot be read."""
    in_chunks(monkeypatch, lambda folder: (folder / name).unlink())
    with pytest.raises(MachineError, match=r"cannot write the checkpoint of step 11 to .* that of step 9, from which"):
        checkpoint.save(str(run), 11, *state(), OWN)
    assert steps_in(run) == [7, 9] and not list((run / "checkpoints").glob(".writing-*"))


@pytest.mark.parametrize("end", ["*.index", ".data-*"])
def test_a_part_that_is_not_listed_yet_is_saved(run, monkeypatch, end):
    listed = glob.glob

    def late(pattern: str) -> list[str]:
        found = listed(pattern)
        return [path for path in found if "rank" not in path] if pattern.endswith(end) else found

    in_chunks(monkeypatch, lambda _: monkeypatch.setattr(glob, "glob", late))
    prefix = checkpoint.save(str(run), 11, *state(), OWN)
    monkeypatch.undo()
    restored = state()
    restored[1]["rows"].variable.assign(tf.zeros([5, 2]))
    checkpoint.restore(prefix, *restored, OWN)
    assert tf.reduce_all(restored[1]["rows"].variable == 1.0)
    assert checkpoint_manifest.damage(prefix, whole=True) == "" and len(checkpoint_manifest.read(prefix).files) == 4
