"""`detect` on the tiny run: it learns to find coloured rectangles, says how well, and draws them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import run_script, snapshot
from tests.voc import write_voc

QUICK = ("--image_size=64", "--pyramid_channels=16", "--batch_size=7")
METRICS = {"AP", "AP50", "AP75", "voc07_AP", "voc07_AP50", "voc07_AP75"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder / "shapes", {"trainval": 40, "test": 7})
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, initialised_run) -> Path:
    """A copy, to which commands may add their results."""
    return shutil.copytree(initialised_run, tmp_path_factory.mktemp("detection") / "run")


def result_of(workdir: Path, data: Path, *flags: str, workers: int = 1) -> dict:
    finished = run_script("detect", f"--workdir={workdir}", f"--dataset=folder:{data}", *QUICK, *flags, workers=workers)
    assert finished.status == 0, finished.output
    result = json.loads((workdir / "detect.json").read_text())
    assert set(result) >= METRICS and all(0 <= result[name] <= 1 for name in METRICS)
    if workers == 1:
        assert json.loads(finished.stdout.splitlines()[-1]) == result
    assert (workdir / "detect.png").read_bytes().startswith(b"\x89PNG")
    return result


def test_two_workers_learn_what_an_untrained_detector_cannot(workdir, data):
    untrained = result_of(workdir, data, "--epochs=0")
    assert untrained["examples"] == 7 and untrained["steps"] == 0 and untrained["init"] == "checkpoint"
    trained = result_of(workdir, data, "--epochs=12", "--init=scratch", workers=2)
    assert trained["steps"] == 72 and trained["init"] == "scratch"
    assert trained["AP50"] > untrained["AP50"] + 0.2
    assert "step" in untrained and "step" not in trained  # of the run
    assert trained["voc07_AP50"] > trained["voc07_AP"] > 0
    # The same settings again, now on one worker: nothing is left to train.
    assert result_of(workdir, data, "--epochs=12", "--init=scratch") == pytest.approx(trained, abs=1e-3)


def test_an_image_that_is_none(workdir, tmp_path):
    write_voc(tmp_path, {"trainval": 2, "test": 1})
    (tmp_path / "JPEGImages" / "test_0.jpg").write_text("no picture")
    finished = run_script("detect", f"--workdir={workdir}", f"--dataset=folder:{tmp_path}", *QUICK, "--epochs=0")
    assert finished.status == 2, finished.output
    said = finished.stderr.splitlines()[-1]
    assert said == f"error: {tmp_path}/JPEGImages/test_0.jpg: cannot read this image (not an image)"


MISTAKES = {
    "--workdir={run}": "--dataset is missing",
    "--workdir={run} --dataset=folder:{data} --init=best": "--init=best: must be one of checkpoint, scratch",
    "--workdir={run} --dataset=folder:{data} --pyramid_channels=24": "--pyramid_channels=24: must be a multiple of 16",
    "--workdir={data} --dataset=folder:{data}": (
        "--workdir={data}: holds no run ({data}/run.flags: No such file or directory)"
    ),
    "--workdir={run} --dataset=folder:{data} --test_split=val": (
        "--dataset=folder:{data}: no split 'val', found in {data}/shapes/ImageSets/Main: test, trainval"
    ),
}


@pytest.mark.parametrize(("flags", "sentence"), MISTAKES.items())
def test_mistakes(workdir, data, flags, sentence):
    before = snapshot(workdir)
    places = {"run": workdir, "data": data}
    finished = run_script("detect", *flags.format(**places).split())
    assert finished.status == 2, finished.output
    said = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert said == [f"error: {sentence.format(**places)}"]
    assert finished.stdout == "" and snapshot(workdir) == before
