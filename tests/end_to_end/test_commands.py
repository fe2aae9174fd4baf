"""The commands that look at a finished run."""

from __future__ import annotations

import json
import re

import pytest
import tensorflow as tf

from tests.commands import ROOT, run_script

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "__init__")


def _run(*arguments) -> tuple[int, str]:
    finished = run_script(*arguments)
    return finished.status, finished.stderr + finished.stdout


def _answer(output: str) -> dict:
    return json.loads(output.strip().splitlines()[-1])


def test_knn_eval(whole_run):
    workdir = whole_run.workdir
    status, output = _run("knn_eval", f"--workdir={workdir}", "--num_neighbors=5")
    assert status == 0, output
    answer = _answer(output)
    assert answer == json.loads((workdir / "knn_eval.json").read_text())
    assert 0.3 < answer["top1"] <= answer["top5"] <= 1 and answer["examples"] == 360


def test_similarity(whole_run):
    workdir = whole_run.workdir
    status, output = _run("similarity", f"--workdir={workdir}", "--instances=500")
    assert status == 0, output
    answer = _answer(output)
    assert set(answer) == {"raw_running_bn", "raw_batch_bn", "raw_fixed_bn", "random", "trained"}
    assert answer["raw_running_bn"]["gap"] > 1.5 * answer["raw_fixed_bn"]["gap"]  # Fig. 4
    assert abs(answer["random"]["gap"]) < 0.05


def test_export_saved_model(whole_run, tmp_path):
    workdir = whole_run.workdir
    status, output = _run("export", f"--workdir={workdir}", "--format=saved_model", f"--output={tmp_path / 'out'}")
    assert status == 0, output
    serve = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_default"]
    for batch in (1, 3):
        result = serve(images=tf.zeros([batch, 20, 18, 3], tf.uint8))
        assert result["features"].shape == [batch, 64] and result["projection"].shape == [batch, 128]
    status, output = _run("export", f"--workdir={workdir}", f"--output={tmp_path / 'out'}")
    assert status == 2 and "--output" in output and "Traceback" not in output


def test_compare(whole_run, tmp_path):
    workdir = whole_run.workdir
    status, output = _run("compare", f"--runs=tiny={workdir}", f"--output={tmp_path}")
    assert status == 0, output
    answer = _answer(output)
    assert set(answer) == {"raw pixels", "tiny"} and answer["raw pixels"]["top1"] > 0.9
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert re.search(r"\| raw pixels \| \d", (tmp_path / "comparison.md").read_text())


@pytest.mark.parametrize(
    ("script", "flags", "wanted"),
    [
        ("knn_eval", [], "--workdir is missing"),
        ("knn_eval", ["--workdir=/nowhere"], "--workdir=/nowhere"),
        ("knn_eval", ["--workdir=/nowhere", "--features=colour"], "--features=colour"),
        ("export", ["--workdir=/nowhere", "--output=x", "--format=tar"], "--format=tar"),
        ("compare", ["--runs=a", "--output=x"], "--runs=a"),
        ("similarity", ["--workdir=/nowhere"], "--workdir=/nowhere"),
    ],
)
def test_mistakes(script, flags, wanted):
    status, output = _run(script, *flags)
    assert status == 2 and wanted in output and "Traceback" not in output, output


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_flags_and_an_example(script):
    status, output = _run(script, "--help")
    assert status == 0
    assert f"python -m scripts.{script} --" in output and re.search(r"^  --", output, re.MULTILINE)
