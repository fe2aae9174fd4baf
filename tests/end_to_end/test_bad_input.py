"""A user's mistake: exit status 2, one sentence that names flag, value and what is wanted, and nothing touched."""

from __future__ import annotations

import pytest

from tests.commands import run_script, snapshot
from tests.end_to_end.runs import flags_of


def _run(*arguments, **options) -> tuple[int, str]:
    finished = run_script(*arguments, **options)
    return finished.status, finished.output


def _one_sentence(output: str) -> str:
    """The sentence; the launcher's marks of the worker and its closing banner are not ours."""
    errors = [line for line in output.splitlines() if "error:" in line]
    assert len(errors) == 1, output
    assert "Traceback" not in output, output
    return errors[0]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--temperature=0"], ["--temperature=0.0", "above 0"]),
        (["--temperature=-1"], ["--temperature=-1.0", "above 0"]),
        (["--temperature=nan"], ["--temperature=nan", "above 0"]),
        (["--smoothing=1.5"], ["--smoothing=1.5", "below 1"]),
        (["--encoder=vgg"], ["--encoder=vgg", "resnet50, resnet18"]),
        (["--batch_size=0"], ["--batch_size=0", "at least 1"]),
        (["--batch_size=many"], ["batch_size", "many"]),
        (["--batchsize=3"], ["batchsize"]),
        (["stray"], ["stray", "--name=value"]),
        (["--workdir="], ["--workdir", "missing"]),
        (["--sampled_classes=300"], ["--sampled_classes=300", "--smoothing=0"]),
        (["--hard_negatives=1437"], ["--hard_negatives=1437", "1437"]),
        (["--dataset=folder:/nowhere"], ["--dataset=folder:/nowhere"]),
        (["--dataset=no_such_dataset"], ["--dataset=no_such_dataset"]),
        (["--classifier_init=zeros"], ["--classifier_init=zeros", "raw_running_bn"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_flags(flags, wanted, tmp_path):
    status, output = _run("pretrain", *flags_of(tmp_path / "run"), *flags)
    assert status == 2, output
    sentence = _one_sentence(output)
    for part in wanted:
        assert part in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_images", [0, 1])
def test_folders_without_enough_images(num_images, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "notes.txt").write_text("not an image")
    for index in range(num_images):
        (photos / f"{index}.jpg").write_bytes(b"never decoded")
    status, output = _run("pretrain", *flags_of(tmp_path / "run", dataset=f"folder:{photos}"))
    assert status == 2, output
    assert f"--dataset=folder:{photos}" in _one_sentence(output)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--batch_size=1"], ["--batch_size=1", "2 workers"]),
        (["--hard_negatives=5000"], ["--hard_negatives=5000", "1437"]),
    ],
    ids=lambda value: value[0],
)
def test_two_workers_say_it_once(flags, wanted, tmp_path):
    status, output = _run("pretrain", *flags_of(tmp_path / "run"), *flags, workers=2)
    assert status == 2, output
    sentence = _one_sentence(output)
    for part in wanted:
        assert part in sentence
    assert list(tmp_path.iterdir()) == []


def test_workdir_of_another_run_is_left_alone(whole_run):
    workdir = whole_run.workdir
    before = snapshot(workdir)
    status, output = _run("pretrain", *flags_of(workdir, temperature=0.2), workers=2)
    assert status == 2, output
    sentence = _one_sentence(output)
    for part in (f"--workdir={workdir}", "--temperature=0.15", "--temperature=0.2"):
        assert part in sentence
    assert snapshot(workdir) == before


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    status, output = _run("pretrain", *flags_of(tmp_path / "run"))
    assert status == 2 and "is a file" in _one_sentence(output)
    assert (tmp_path / "run").read_text() == "mine"
