"""The evaluations of a finished run: on two workers as on one, their files, and what a user's mistake says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import instcls_tf
from flags import evaluation
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.evaluation import commands, feature_store
from instcls_tf.evaluation.recipes import CachedRecipe, LinearRecipe
from instcls_tf.report.correlation import accuracies_of_run
from tests.commands import run_script
from tests.end_to_end.runs import TINY, metrics_of, write_images


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, whole_run) -> Path:
    """A copy of the tiny run, to which commands may add their results."""
    return shutil.copytree(whole_run.workdir, tmp_path_factory.mktemp("judged") / "run")


@pytest.fixture(scope="module")
def subject(workdir) -> commands.Subject:
    return commands.open_subject(str(workdir), None, None, None)


def answered(name: str, workdir: Path, *arguments: str, workers: int = 1) -> dict:
    """What a command prints last, on whichever worker's line, and keeps in the run's folder."""
    finished = run_script(name, f"--workdir={workdir}", *arguments, workers=workers)
    assert finished.status == 0, finished.output
    printed = finished.stdout.splitlines()
    assert len(printed) == 1, finished.stdout
    answer = json.loads(printed[0][printed[0].index("{") : printed[0].rindex("}") + 1])
    assert answer == json.loads((workdir / f"{name}.json").read_text())
    assert workers == 1 or finished.said_by(1) == []
    return answer


def test_two_workers_judge_as_one(workdir, subject, tmp_path):
    """Features are extracted by two workers, and classifiers trained by them."""
    elsewhere = shutil.copytree(workdir, tmp_path / "run")
    cached = answered("linear_eval", elsewhere, "--cached", "--epochs=5", workers=2)
    alone = commands.cached_linear_of_run(subject, CachedRecipe(epochs=5))
    for key in ("top1", "top5", "mean_per_class"):
        assert cached[key] == pytest.approx(alone[key], abs=0.006)  # two of 360 images
    assert cached["examples"] == alone["examples"] == 360
    assert cached["learning_rate"] == pytest.approx(alone["learning_rate"], rel=1e-4)
    assert alone["top1"] > 0.5
    both = [{path.name: path for path in (folder / "features").iterdir()} for folder in (elsewhere, workdir)]
    assert both[0].keys() == both[1].keys()
    assert len(both[0]) == 2
    for name, folder in both[0].items():
        for array in ("backbone", "projection", "labels", "ids"):
            pair = (np.load(place / f"{array}.npy") for place in (folder, both[1][name]))
            np.testing.assert_allclose(*pair, atol=1e-4)


def test_protocol_on_two_workers(workdir, subject):
    recipe = LinearRecipe(epochs=2, batch_size=359, learning_rate=1.0, augmentation="digits")
    flags = [f"--{name}={getattr(recipe, name)}" for name in ("epochs", "batch_size", "learning_rate", "augmentation")]
    shared, alone = answered("linear_eval", workdir, *flags, workers=2), commands.linear_of_run(subject, recipe)
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    assert shared["top1"] == pytest.approx(alone["top1"], abs=0.006)
    assert (shared["protocol"], shared["examples"], shared["epochs"]) == ("augmented", 360, 2)


def test_finetune(workdir):
    flags = ["--fraction=0.1", "--epochs=2", "--batch_size=64", "--augmentation=digits", "--metric=mean_per_class"]
    answer = answered("finetune", workdir, *flags, workers=2)
    assert (answer["labels"], answer["examples"], answer["fraction"]) == (140, 360, 0.1)
    assert answer["score"] == answer["mean_per_class"] != answer["top1"]
    assert 0 < answer["top1"] <= answer["top5"] <= 1


def test_extracted_features_can_be_judged_as_the_run_is(workdir, subject, tmp_path):
    for split in ("train", "test"):
        about = commands.extract_of_run(str(workdir), None, None, split, str(tmp_path / f"{split}.npz"))
        assert about["backbone"] == 64
        assert about["projection"] == 128
    files = str(tmp_path / "train.npz"), str(tmp_path / "test.npz")
    for kind in ("backbone", "projection"):
        settings = {"k": 20, "temperature": 0.07}
        of_run, of_files = (commands.knn_of_run(subject, kind, files=f, **settings) for f in (None, files))
        for key in ("top1", "top5", "nearest_top1", "examples"):
            assert of_run[key] == of_files[key]
    recipe = CachedRecipe(epochs=2)
    of_run, of_files = (commands.cached_linear_of_run(subject, recipe, f) for f in (None, files))
    assert of_run["top1"] == of_files["top1"]
    np.savez(tmp_path / "wide.npz", backbone=np.zeros([2, 7]), labels=np.zeros(2, int))
    with pytest.raises(UserError, match=r"wide\.npz: has 7 features, --train_features has 64$"):
        commands.features_from_files((files[0], str(tmp_path / "wide.npz")), "backbone")
    np.savez(tmp_path / "new.npz", backbone=np.zeros([2, 64]), labels=np.array([0, 10]))
    with pytest.raises(UserError, match=r"new\.npz: class 10 is missing in --train_features$"):
        commands.features_from_files((files[0], str(tmp_path / "new.npz")), "backbone")


def test_extract_of_other_images(workdir, tmp_path):
    """Unlabelled photographs, by two workers: one has an image more than the other."""
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(5)])
    output = tmp_path / "features"
    flags = [f"--dataset=folder:{tmp_path / 'photos'}", f"--output={output}"]
    answer = answered("extract", workdir, *flags, workers=2)
    assert (answer["examples"], answer["files"]) == (5, 4)
    assert np.load(output / "backbone.npy").shape == (5, 64)
    np.testing.assert_array_equal(np.load(output / "labels.npy"), [-1] * 5)
    with pytest.raises(UserError, match="exists already"):
        commands.extract_of_run(str(workdir), None, None, "train", str(output))
    with pytest.raises(UserError, match="has images without labels"):
        feature_store.load_features(str(output))


def test_a_run_measures_itself(tmp_path):
    """Every epoch, whatever the log lines in between; the picture needs three measurements."""
    changes = {"online_knn_every": 1, "epochs": 3, "log_every": 2, "workdir": str(tmp_path)}
    instcls_tf.pretrain(PretrainConfig(**{**TINY, **changes}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    measured = {line["step"]: line["knn_top1"] for line in lines if "knn_top1" in line}
    assert list(measured) == [5, 10, 15]
    final = commands.knn_of_run(
        commands.open_subject(str(tmp_path), None, None, None), "backbone", k=20, temperature=0.07
    )
    assert measured[15] == final["top1"]
    assert accuracies_of_run(str(tmp_path))["knn_top1"] == list(measured.values())
    answer = answered("correlation", tmp_path)
    assert -1 <= answer["correlation"] <= 1
    assert (tmp_path / "correlation.png").exists()


def test_online_measurements_change_nothing(tmp_path, whole_run):
    changes = {"online_knn_every": 1, "workdir": str(tmp_path)}
    instcls_tf.pretrain(PretrainConfig(**{**TINY, **changes}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = metrics_of(whole_run.workdir)
    np.testing.assert_allclose([line["loss"] for line in lines], expected["loss"], atol=1e-4)


def test_a_run_without_labels_cannot_measure_itself(tmp_path):
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(5)])
    changes = {"dataset": f"folder:{tmp_path / 'photos'}", "batch_size": 4, "hard_negatives": 2}
    config = PretrainConfig(**{**TINY, **changes, "online_knn_every": 1, "workdir": str(tmp_path / "run")})
    with pytest.raises(UserError, match="the train split has no labels"):
        instcls_tf.pretrain(config)
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "linear_eval --learning_rate=x": "--learning_rate=x: must be a number",
    "linear_eval --workdir={run} --dataset=folder:{photos}": "--dataset=folder:{photos}: the train split has no labels,"
    " wanted PATH/{{train,test}}/CLASS/* or a TFDS dataset with the feature 'label'",
    "linear_eval --workdir={run} --train_features=x": "--test_features is missing: features come from two files or from"
    " none",
    "linear_eval --workdir={run} --train_features=x --test_features=y": "--train_features=x: needs --cached, the other"
    " protocol trains on images",
    "finetune --workdir={run} --fraction=2": "--fraction=2.0: must be above 0 and at most 1",
    "finetune --workdir={run} --test_split=dev": "--dataset=digits: no split 'dev', wanted train or test",
    "extract --workdir={run}": "--output is missing",
    "correlation --workdir={run}": "--workdir={run}: has 0 measurements of nearest-neighbour accuracy, wanted at least"
    " 3: pretrain with --online_knn_every=1",
    "similarity --workdir={run} --index --threshold=2": "--threshold=2.0: must be a cosine, between -1 and 1",
}


@pytest.mark.parametrize(("command", "sentence"), MISTAKES.items())
def test_mistakes(whole_run, tmp_path, command, sentence):
    write_images(tmp_path / "photos", ["0.jpg", "1.jpg"])
    places = {"run": whole_run.workdir, "photos": tmp_path / "photos"}
    finished = run_script(*command.format(**places).split())
    assert (finished.status, finished.stdout) == (2, "")
    assert finished.stderr == f"error: {sentence.format(**places)}\n"


def test_only_rank_0_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOROVOD_RANK", "1")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    evaluation.answer("knn_eval", str(tmp_path), {"top1": 0.5})
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
