"""A user's mistake: exit status 2, one sentence that names flag, value and what is wanted, and nothing touched."""

from __future__ import annotations

import re

import pytest

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.data.image_suffixes import IMAGE_SUFFIXES
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from tests.commands import Finished, run_script, snapshot
from tests.end_to_end.runs import TINY, flags_of
from tests.images import write_images


def sentence_of(finished: Finished, workers: int = 1) -> str:
    """The one thing that the workers say, the launcher's own banner apart."""
    assert finished.status == 2, finished.output
    if workers == 1:
        assert finished.stdout == "", finished.output
        said = finished.stderr.splitlines()
    else:
        said = [line for rank in range(workers) for line in finished.said_by(rank)]
    assert len(said) == 1, finished.output
    assert said[0].startswith("error: "), finished.output
    return said[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--temprature=1"], "--temprature: no such flag; did you mean --temperature?"),
        (["stray"], "'stray' is not a flag: every setting is given as --name=value"),
        (["--batch_size=many"], "--batch_size=many: must be a whole number"),
        (["--batch_size=0"], "--batch_size=0: must be at least 1"),
        (["--temperature=0"], "--temperature=0.0: must be a number above 0"),
        (["--temperature=-1"], "--temperature=-1.0: must be a number above 0"),
        (["--temperature=nan"], "--temperature=nan: must be a number above 0"),
        (["--smoothing=1.5"], "--smoothing=1.5: must be 0 or more and below 1"),
        (["--encoder=vgg"], "--encoder=vgg: must be one of resnet50, resnet18, resnet10"),
        (["--max_steps=-1"], "--max_steps=-1: must be 0 or more"),
        (["--seed=-1"], "--seed=-1: must be 0 or more and below 2147483648"),
        (["--workdir="], "--workdir is missing: name the folder that receives the run"),
        (["--flagfile=no_such_file"], "--flagfile: cannot read no_such_file (No such file or directory)"),
        (["--sampled_classes=300"], r"--sampled_classes=300 works without smoothing only (.*): add --smoothing=0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_flags(tmp_path, flags, sentence):
    before = snapshot(tmp_path)
    finished = run_script("pretrain", *flags_of(tmp_path / "run"), *flags)
    pattern = ".*".join(map(re.escape, sentence.split(".*")))
    assert re.fullmatch(pattern, sentence_of(finished)), finished.stderr
    assert snapshot(tmp_path) == before


def test_a_workdir_that_cannot_be_made():
    """Where even root makes no folders."""
    finished = run_script("pretrain", *flags_of("/proc/run"), workers=2)
    assert finished.output.count("error: --workdir=/proc/run: cannot write there (No such file or directory)") == 1
    assert finished.status == 2


def test_data_that_are_no_data(tmp_path):
    """The answers of the library, which the command passes on; one of them is seen through the command below."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (tmp_path / "file").write_text("no folder")
    write_images(tmp_path / "single", ["one.jpg"])
    write_images(tmp_path / "few", [f"{index}.jpg" for index in range(5)])
    few = {"dataset": f"folder:{tmp_path / 'few'}", "batch_size": 4}
    before = snapshot(tmp_path)
    for wrong, value, changes, sentence in [
        (
            "dataset",
            f"folder:{tmp_path / 'empty'}",
            {},
            f"no images ({', '.join(IMAGE_SUFFIXES)}) in that folder",
        ),
        ("dataset", f"folder:{tmp_path / 'none'}", {}, "no such folder"),
        ("dataset", f"folder:{tmp_path / 'file'}", {}, "not a folder, wanted a folder of images"),
        ("dataset", f"folder:{tmp_path / 'single'}", {}, "one image only, wanted at least 2 images"),
        ("dataset", "no_such_dataset", {}, "no such dataset, wanted digits, folder:PATH, records:PATH or a TFDS name"),
        ("dataset", "mnist", {"data_dir": str(tmp_path / "few")}, "not prepared, run first: tfds build mnist"),
        ("hard_negatives", 1437, {}, "must be below the number of instances of --dataset=digits, 1437"),
        ("hard_negatives", 5, few, f"must be below the number of instances of --dataset={few['dataset']}, 5"),
        (
            "sampled_classes",
            1438,
            {"smoothing": 0.0},
            "must be at most the number of instances of --dataset=digits, 1437",
        ),
    ]:
        settings = {**TINY, **changes, wrong: value, "workdir": str(tmp_path / "run")}
        with pytest.raises(UserError) as refusal:
            instcls_tf.pretrain(PretrainConfig(**settings))
        assert str(refusal.value).startswith(f"--{wrong}={value}: {sentence}")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.0}, "--temperature=0.0: must be a number above 0"),
        ({"hard_negatives": 1437}, "--hard_negatives=1437: must be below the number of instances of --dataset=digits"),
        ({"dataset": "folder:/photos"}, "--dataset=folder:/photos: must be that of the images, which are those of"),
        ({"workdir": ""}, "--workdir is missing: name the folder that receives the run"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_images_that_are_open_already_are_checked_all_the_same(tmp_path, changes, sentence):
    config = PretrainConfig(**{**TINY, "workdir": str(tmp_path / "run"), **changes})
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as refusal:
        instcls_tf.pretrain(config, open_source("digits"))
    assert str(refusal.value).startswith(sentence)
    assert snapshot(tmp_path) == before


def test_a_dataset_that_is_not_there(tmp_path):
    before = snapshot(tmp_path)
    finished = run_script("pretrain", *flags_of(tmp_path / "run", dataset=f"folder:{tmp_path}/none"))
    assert sentence_of(finished) == f"--dataset=folder:{tmp_path}/none: no such folder"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--batch_size=1", "must be at least the 2 workers"),
        # Answered with the data at hand, when TensorFlow is loaded already.
        ("--hard_negatives=1437", "must be below the number of instances of --dataset=digits, 1437"),
    ],
)
def test_two_workers_say_it_once(tmp_path, flag, sentence):
    before = snapshot(tmp_path)
    finished = run_script("pretrain", *flags_of(tmp_path / "run"), flag, workers=2)
    assert sentence_of(finished, workers=2) == f"{flag}: {sentence}"
    # In one piece: the launcher would put its mark behind it as well.
    assert re.search(rf"^\[(1,)?0\]<stderr>:error: {re.escape(f'{flag}: {sentence}')}$", finished.stderr, re.MULTILINE)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_workdir_of_another_run_is_left_alone(whole_run, workers):
    workdir = whole_run.workdir
    before = snapshot(workdir.parent)
    finished = run_script("pretrain", *flags_of(workdir, temperature=0.2), workers=workers)
    assert sentence_of(finished, workers) == (
        f"--workdir={workdir} belongs to a run with --temperature=0.15, this one has --temperature=0.2:"
        " give the same flags to continue it, or another folder"
    )
    assert snapshot(workdir.parent) == before


def test_a_workdir_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    finished = run_script("pretrain", *flags_of(tmp_path / "file"))
    assert sentence_of(finished) == f"--workdir={tmp_path}/file: is a file, not a folder"
    # Nobody may write below a file, not even root.
    finished = run_script("pretrain", *flags_of(tmp_path / "file" / "run"))
    assert sentence_of(finished) == f"--workdir={tmp_path}/file/run: cannot write to {tmp_path}/file"
    assert snapshot(tmp_path) == before
