"""The commands that look at a finished run: their answers, their files, and their answers to mistakes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import instcls_tf
from instcls_tf.encoder import networks
from instcls_tf.evaluation.subject import open_subject
from tests.commands import run_command, run_script, snapshot, under_launcher
from tests.encoders import knn_top1


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, whole_run) -> Path:
    """A copy of the tiny run, to which commands may add their results."""
    return shutil.copytree(whole_run.workdir, tmp_path_factory.mktemp("evaluated") / "run")


def answer_of(name: str, folder: Path, *arguments: str, kept_as: str = "") -> dict:
    """What a command prints last and keeps in `folder`; it adds nothing else to the run."""
    finished = run_script(name, *arguments)
    assert finished.status == 0, finished.output
    answer = json.loads(finished.stdout.splitlines()[-1])
    assert answer == json.loads((folder / f"{kept_as or name}.json").read_text())
    return answer


def test_knn_eval(workdir):
    answer = answer_of("knn_eval", workdir, f"--workdir={workdir}", "--num_neighbors=5")
    assert {key: answer[key] for key in ("examples", "features", "num_neighbors", "dataset")} == {
        "examples": 360, "features": "backbone", "num_neighbors": 5, "dataset": "digits",
    }  # fmt: skip
    subject = open_subject(str(workdir), None, None, None)
    encoders = instcls_tf.load_encoder(str(workdir)), networks.make_encoder(subject.config)
    trained, untrained = (knn_top1(encoder, subject.config, subject.splits, k=5) for encoder in encoders)
    one_image = 1.5 / 360  # what float32 rounds may change one vote
    assert answer["top1"] == pytest.approx(trained, abs=one_image)
    assert answer["top1"] != pytest.approx(untrained, abs=one_image)
    assert 0.3 < answer["top1"] < answer["top5"] <= 1  # chance is 0.1


def test_similarity(workdir):
    answer = answer_of("similarity", workdir, f"--workdir={workdir}", "--instances=500")
    inits = {"raw_running_bn", "raw_batch_bn", "raw_fixed_bn", "random", "trained"}
    assert set(answer) == {*inits, "step"}
    for of_init in map(answer.get, inits):
        assert of_init["gap"] == pytest.approx(of_init["intra"] - of_init["inter"])
    assert answer["raw_running_bn"]["gap"] > 1.5 * answer["raw_fixed_bn"]["gap"]  # Fig. 4
    assert abs(answer["random"]["gap"]) < 0.05
    picture = (workdir / "similarity.png").read_bytes()
    index = answer_of("similarity", workdir, f"--workdir={workdir}", "--index", kept_as="similarity_index")
    assert index["examples"] == 1437 and index["step"] == answer["step"] == 8
    assert json.loads((workdir / "similarity.json").read_text()) == answer
    assert (workdir / "similarity.png").read_bytes() == picture != (workdir / "similarity_index.png").read_bytes()


def test_export_saved_model(workdir, tmp_path):
    before = snapshot(workdir)
    flags = [f"--workdir={workdir}", "--format=saved_model", f"--output={tmp_path / 'exported'}", "--serving_version=1"]
    finished = run_script("export", *flags)
    assert finished.status == 0, finished.output
    answer = json.loads(finished.stdout.splitlines()[-1])
    assert (answer["output"], answer["format"]) == (str(tmp_path / "exported" / "1"), "saved_model")
    assert snapshot(workdir) == before
    serve = tf.saved_model.load(str(tmp_path / "exported" / "1")).signatures["serving_default"]
    encoder = instcls_tf.load_encoder(str(workdir))
    for batch in (1, 3):
        images = np.random.default_rng(batch).integers(0, 256, [batch, 16, 16, 3], np.uint8)
        outputs = serve(images=tf.constant(images))
        expected = encoder.get_layer("backbone")(images, training=False)
        np.testing.assert_allclose(outputs["features"], expected, atol=1e-5)
        assert outputs["projection"].shape == [batch, 128]

    exported = snapshot(tmp_path)
    finished = run_script("export", *flags)
    assert finished.status == 2
    assert finished.stderr == f"error: --output={tmp_path}/exported/1: is not empty, name a new or an empty folder\n"
    assert snapshot(tmp_path) == exported

    finished = run_script("check_export", str(tmp_path / "exported" / "1"))
    assert finished.status == 0, finished.output
    assert json.loads(finished.stdout.splitlines()[-1])["error"] <= 1e-5
    origin = json.loads((tmp_path / "exported" / "1" / "assets.extra" / "model_card.json").read_text())["origin"]
    assert (origin["step"], origin["recipe"]["encoder"]) == (8, "resnet10")
    assert origin["data_digest"]
    assert "workdir" not in origin["recipe"]


def test_export_without_a_checkpoint(workdir, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(workdir / "run.flags", tmp_path / "run")
    before = snapshot(tmp_path)
    finished = run_script("export", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'exported'}")
    assert finished.status == 2
    assert finished.stderr == f"error: --workdir={tmp_path / 'run'}: the run has not saved a checkpoint yet\n"
    assert snapshot(tmp_path) == before


def test_compare(workdir, tmp_path):
    before = snapshot(workdir)
    flags = [f"--runs=tiny run={workdir}", f"--output={tmp_path / 'results'}"]
    answer = answer_of("compare", tmp_path / "results", *flags)
    assert snapshot(workdir) == before
    assert list(answer) == ["raw pixels", "tiny run"]
    assert answer["raw pixels"]["top1"] > 0.9
    table = (tmp_path / "results" / "comparison.md").read_text()
    assert f"| tiny run | {answer['tiny run']['few_labels_top1']:.1%}" in table
    assert (tmp_path / "results" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_two_workers_compare_as_one_does(workdir, tmp_path):
    alone, of_two = (tmp_path / name for name in ("alone", "of_two"))
    answer = answer_of("compare", alone, f"--runs=tiny={workdir}", f"--output={alone}")
    command = [sys.executable, "-m", "scripts.compare", f"--runs=tiny={workdir}", f"--output={of_two}"]
    finished = run_command(under_launcher(2, command))
    assert finished.status == 0, finished.output
    shared = json.loads((of_two / "compare.json").read_text())
    for row, values in answer.items():
        assert shared[row] == pytest.approx(values, abs=1.5 / 360), row


MISTAKES = {
    "knn_eval": "--workdir is missing",
    "knn_eval --workdir={empty}": "--workdir={empty}: holds no run ({empty}/run.flags: No such file or directory)",
    "knn_eval --workdir={empty} --features=word": "--features=word: must be one of backbone, projection, pixels",
    "similarity --dataset=digits": "--dataset: no such flag; did you mean --data_dir?",
    "export --workdir={empty}": "--output is missing",
    "export --workdir={empty} --output=x --format=tar": "--format=tar: must be one of saved_model, onnx, onnx_int8,"
    " litert, torchvision, detectron2",
    "export --output={empty}/a*b": "--output={empty}/a*b: holds *, which TensorFlow reads as a pattern, wanted a path"
    " without any of [ ] * ? \\",
    "export --workdir={empty} --output={empty}/x --serving_version=0": "--serving_version=0: must be 1 or more, and"
    " comes with --format=saved_model",
    "check_export": "check_export: wanted the folder of an export",
    "check_export {empty}": "{empty}: holds no export (model_card.json is missing)",
    "export_matrix": "--environments is missing",
    "search --workdir={empty}": "--query is missing: name an image file, or several with commas between",
    "search --workdir={empty} --query=a.jpg": "--workdir={empty}: holds no run ({empty}/run.flags: No such file or"
    " directory)",
    "duplicates --workdir={empty} --percentile=101": "--percentile=101.0: must be between 0 and 100",
    "compare --output={empty}": "--runs is missing",
    "compare --runs=a --output={empty}": "--runs=a: must be NAME=WORKDIR,NAME=WORKDIR,... with different names",
}


@pytest.mark.parametrize(("command", "sentence"), MISTAKES.items())
def test_mistakes(tmp_path, command, sentence):
    before = snapshot(tmp_path)
    finished = run_script(*command.format(empty=tmp_path).split())
    assert finished.status == 2, finished.output
    assert finished.stderr == f"error: {sentence.format(empty=tmp_path)}\n"
    assert finished.stdout == ""
    assert snapshot(tmp_path) == before
