"""Workers that do not see the same images, or are not started alike, must not train together."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from instcls_tf import files
from instcls_tf.config import PretrainConfig
from instcls_tf.data.manifest import Changes
from instcls_tf.data.sources import open_source
from instcls_tf.distributed import workers
from instcls_tf.errors import DivergedError, MachineError, NoSplitError, UserError
from instcls_tf.pretraining import agreement, opening
from instcls_tf.progress import Progress


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("dataset", "7 images", "--dataset=digits: worker 2 does not see the same images as worker 0 (7 images, 1437 "),
        ("--seed", "1", "worker 2 has --seed=1, worker 0 has --seed=0: wanted the same on both"),
        ("kernels", "none", "worker 2 has kernels=none, worker 0 has kernels="),
        ("threads", "99", "worker 2 computes with 99 thread(s), worker 0 with "),
        ("code", "0", "worker 2 has code=0, worker 0 has code="),
    ],
)
def test_workers_that_differ_are_refused(monkeypatch, name, value, sentence):
    config, source = PretrainConfig(workdir="here", dataset="digits"), open_source("digits")
    agreement.refuse_differences(config, source)
    monkeypatch.setattr(workers, "everybodys", lambda mine: [mine, mine, {**mine, name: value}])
    with pytest.raises(UserError) as refusal:
        agreement.refuse_differences(config, source)
    assert str(refusal.value).startswith(sentence)


def test_a_worker_whose_gpu_tensorflow_cannot_load_is_told_so(monkeypatch):
    """Number type, kernels and threads differ as well, and follow from it."""
    config, source = PretrainConfig(workdir="here", dataset="digits"), open_source("digits")
    mine = agreement._facts(config, source)
    there = {**mine, "GPU": "a GPU", "--precision": "mixed_float16", "kernels": "none", "threads": "a GPU's"}
    monkeypatch.setattr(workers, "everybodys", lambda _: [there, mine])
    sentence = "worker 1: TensorFlow sees no GPU, for worker 0 a GPU: wanted the same on all workers; pip install '"
    with pytest.raises(UserError, match=f"^{sentence}"):
        agreement.refuse_differences(config, source)


def test_files_that_are_gone_for_one_worker_only_are_a_difference(monkeypatch):
    """Of a run that goes on: ids and names come from its list, also of what a worker does not see any more."""
    config, source = PretrainConfig(workdir="here", dataset="digits"), open_source("digits")

    def without(name: str) -> SimpleNamespace:
        changes = Changes(vanished=(name,))
        return SimpleNamespace(
            name="digits", num_instances=source.num_instances, ids_digest=source.ids_digest, changes=changes
        )

    facts = agreement._facts(config, without("a.jpg"))
    monkeypatch.setattr(workers, "everybodys", lambda mine: [mine, facts])
    with pytest.raises(
        UserError, match=r"worker 1 does not see the .* \(1437 images, 1 of them gone \(digest .*\), digest .*, 1437 i"
    ):
        agreement.refuse_differences(config, source)
    with pytest.raises(UserError, match=r"worker 1 does not see the same images as worker 0"):
        agreement.refuse_differences(config, without("\udcff.jpg"))
    agreement.refuse_differences(config, without("a.jpg"))


def test_workdirs_may_have_other_names(monkeypatch):
    config, source = PretrainConfig(workdir="here", dataset="digits"), open_source("digits")
    there = agreement._facts(config.replace(workdir="there", data_dir="elsewhere"), source)
    monkeypatch.setattr(workers, "everybodys", lambda mine: [mine, there])
    agreement.refuse_differences(config, source)


def test_a_folder_that_comes_late_is_waited_for(tmp_path, monkeypatch):
    """As a machine sees it whose file system still holds that it is not there."""
    path = tmp_path / "new" / "run" / "word"

    def make() -> None:
        path.parent.mkdir(parents=True)
        path.write_text("word")

    threading.Timer(2.0, make).start()
    assert agreement._sees(str(path), "word")
    monkeypatch.setattr(agreement, "_PATIENCE", 0.5)
    started = time.monotonic()
    assert not agreement._sees(str(tmp_path / "absent" / "word"), "word")
    assert not agreement._sees(str(path), "another")
    assert time.monotonic() - started > 1.0


def test_what_a_workdir_is_tried_with_does_not_stay(tmp_path, monkeypatch):
    """Nor does what a process that was killed then had left there."""
    workdir, everybodys = tmp_path / "runs" / "june", workers.everybodys
    monkeypatch.setattr(workers, "everybodys", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        agreement.refuse_other_workdirs(str(workdir))
    assert not list(tmp_path.iterdir())
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    left = f"{workdir}/{files.scratch_prefix(str(workdir))}x".replace(f"-{os.getpid()}-", f"-{gone.pid}-")
    os.makedirs(left)
    monkeypatch.setattr(workers, "everybodys", everybodys)
    agreement.refuse_other_workdirs(str(workdir))
    assert not list(workdir.iterdir())


@pytest.mark.parametrize(
    ("kind", "heard"),
    [(UserError, UserError), (MachineError, MachineError), (DivergedError, DivergedError), (NoSplitError, UserError)],
)
def test_what_one_worker_meets_is_of_the_same_kind_on_all(tmp_path, monkeypatch, kind, heard):
    """Else a fault of a machine would be taken for a user's mistake, after which no job is started again."""

    def fail(*_) -> None:
        raise kind("such a sentence")

    monkeypatch.setattr(opening, "_take", fail)
    config = PretrainConfig(workdir=str(tmp_path / "runs" / "june"), dataset="digits")
    with pytest.raises(UserError, match=r"^such a sentence$") as refusal:
        opening.take_workdir(config, open_source("digits"), Progress(visible=False))
    assert type(refusal.value) is heard and not list(tmp_path.iterdir())
    monkeypatch.setattr(workers, "everybodys", lambda mine: [["", "", "worker 1 does not see it"]])
    with pytest.raises(UserError, match=r"^worker 1 does not see it$"):
        agreement.refuse_other_workdirs(config.workdir)
    assert not list(tmp_path.iterdir())
