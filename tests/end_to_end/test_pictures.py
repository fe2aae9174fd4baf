"""Pictures are the last thing a command does: results outlive a drawing that fails, and names are drawn as they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.commands import Finished, run_command, run_script, script
from tests.voc import write_voc

PICTURES = {"correlation": "correlation.png", "similarity": "similarity.png", "compare": "comparison.png"}
PICTURES["detect"] = "detect.png"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, whole_run) -> Path:
    """A copy of the tiny run, which has measured itself."""
    workdir = shutil.copytree(whole_run.workdir, tmp_path_factory.mktemp("drawn") / "run")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [{**line, "knn_top1": 0.1 + 0.01 * index} for index, line in enumerate(lines)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


@pytest.fixture(scope="module")
def detector_run(tmp_path_factory, initialised_run) -> Path:
    return shutil.copytree(initialised_run, tmp_path_factory.mktemp("detection") / "run")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> Path:
    """Images whose classes are called `$$` and `_x`, after what matplotlib takes for mathematics and for hidden."""
    folder = tmp_path_factory.mktemp("boxes")
    write_voc(folder, {"trainval": 4, "test": 4})
    for path in (folder / "Annotations").iterdir():
        path.write_text(path.read_text().replace(">red<", ">$$<").replace(">green<", ">_x<"))
    return folder


@pytest.fixture
def command_line(workdir, detector_run, boxes, request, tmp_path) -> tuple[str, list[str], Path]:
    """A command that draws, its flags, and the folder that receives its result."""
    name = request.param
    if name == "compare":
        return name, [f"--runs=$$={workdir},_x={workdir}", f"--output={tmp_path}"], tmp_path
    if name == "detect":
        flags = [f"--dataset=folder:{boxes}", "--image_size=64", "--pyramid_channels=16", "--epochs=0"]
        return name, [f"--workdir={detector_run}", *flags], detector_run
    flags = ["--instances=50"] if name == "similarity" else []
    return name, [f"--workdir={workdir}", *flags], workdir


def result_of(finished: Finished, name: str, folder: Path) -> dict:
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result == json.loads((folder / f"{name}.json").read_text())
    return result


@pytest.mark.parametrize("command_line", PICTURES, indirect=True)
def test_names_are_drawn_and_a_drawing_that_fails_is_a_warning(command_line, tmp_path, monkeypatch):
    name, flags, folder = command_line
    picture = folder / PICTURES[name]
    finished = run_script(name, *flags)
    assert finished.status == 0, finished.stderr
    result = result_of(finished, name, folder)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "warning" not in finished.stderr and "Warning" not in finished.stderr

    picture.unlink()
    (folder / f"{name}.json").unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "matplotlib.py").write_text("raise ImportError('no matplotlib here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    finished = run_command(script(name, *flags))
    assert finished.status == 0, finished.stderr
    assert result_of(finished, name, folder).keys() == result.keys()
    assert finished.stderr.splitlines()[-1] == (
        f"warning: {picture} could not be drawn (ImportError: no matplotlib here)"
    )
    assert not picture.exists()


@pytest.mark.parametrize("command_line", ["correlation"], indirect=True)
def test_a_picture_on_a_full_disk(command_line):
    name, flags, folder = command_line
    picture = folder / PICTURES[name]
    picture.unlink(missing_ok=True)
    os.symlink("/dev/full", picture)
    finished = run_script(name, *flags)
    picture.unlink()
    assert finished.status == 2
    assert finished.stderr == f"error: {picture}: cannot write this file (No space left on device)\n"
    assert -1 <= result_of(finished, name, folder)["correlation"] <= 1
