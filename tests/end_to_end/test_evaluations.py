"""The evaluations of a finished run: on two workers as on one, their files, and what a user's mistake says."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.data import cache
from instcls_tf.errors import UserError
from instcls_tf.evaluation import commands
from instcls_tf.evaluation.recipes import CachedRecipe
from instcls_tf.evaluation.subject import Subject, open_subject
from instcls_tf.report.correlation import accuracies_of_run
from instcls_tf.report.pictures import load_metrics
from tests.commands import run_command, run_script, under_launcher
from tests.end_to_end.runs import TINY, metrics_of
from tests.images import write_images
from tests.parallel import evaluations


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, whole_run) -> Path:
    """A copy of the tiny run, to which commands may add their results."""
    return shutil.copytree(whole_run.workdir, tmp_path_factory.mktemp("judged") / "run")


@pytest.fixture(scope="module")
def subject(workdir) -> Subject:
    return open_subject(str(workdir), None, None, None)


def test_two_workers_judge_as_one(workdir, tmp_path):
    """Features are extracted by two workers, and classifiers trained; six photographs are shared out as well."""
    elsewhere = shutil.copytree(workdir, tmp_path / "run")
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(5)])
    Image.open(tmp_path / "photos" / "3.jpg").save(tmp_path / "photos" / "again.png")
    places = [tmp_path / "photos", tmp_path / "features"]
    (tmp_path / "broken").write_bytes(b"no image")
    words = [sys.executable, "-m", "tests.parallel.evaluations", elsewhere, *places, tmp_path / "answers.json"]
    finished = run_command(under_launcher(2, [str(word) for word in words]))
    assert finished.status == 0, finished.output
    assert any("fine-tuning: step" in line for line in finished.said_by(0))
    assert not any("step" in line for line in finished.said_by(1))
    shared = json.loads((tmp_path / "answers.json").read_text())
    alone = evaluations.judge(workdir, tmp_path / "photos", tmp_path / "alone")
    # Two of 360 images; but in fine-tuning BN sees a worker's own images, so that other classifiers come out.
    for name, tolerance in {"knn": 0.006, "cached": 0.006, "linear": 0.006, "finetune": 0.15}.items():
        for key in ("top1", "top5"):
            assert shared[name][key] == pytest.approx(alone[name][key], abs=tolerance), name
        assert shared[name]["examples"] == 360 and shared[name]["step"] == alone[name]["step"] == 8
    assert shared["linear"]["loss"] == pytest.approx(alone["linear"]["loss"], rel=1e-3)
    assert shared["finetune"]["loss"] == pytest.approx(alone["finetune"]["loss"], rel=0.2)
    assert shared["cached"]["learning_rate"] == pytest.approx(alone["cached"]["learning_rate"], rel=1e-4)
    assert alone["cached"]["top1"] > 0.3
    for network in ("pixels", "start", "run"):
        for name, tolerance in {"top1": 0.03, "nearest_top1": 0.03, "gauge_agreement": 0.01, "rank_me": 0.01}.items():
            assert shared["report"][network][name] == pytest.approx(alone["report"][network][name], abs=tolerance), name
    assert (shared["report"]["train_examples"], shared["report"]["test_examples"]) == (500, 100)
    assert (alone["finetune"]["labels"], alone["finetune"]["fraction"]) == (140, 0.1)
    assert alone["finetune"]["score"] == alone["finetune"]["mean_per_class"]
    assert (shared["extract"]["examples"], shared["extract"]["files"]) == (6, 5)
    np.testing.assert_array_equal(np.load(tmp_path / "features" / "labels.npy"), [-1] * 6)
    paths = np.load(tmp_path / "features" / "paths.npy").tolist()
    assert paths == [*(f"{index}.jpg" for index in range(5)), "again.png"]
    for one, other in zip(shared["search"]["hits"], alone["search"]["hits"]):
        assert one["path"] == other["path"] and one["cosine"] == pytest.approx(other["cosine"], abs=1e-4)
    assert [hit["path"] for hit in shared["search"]["hits"]][::3] == ["1.jpg", "2.jpg"]
    assert shared["duplicates"] == alone["duplicates"] == [["3.jpg", "again.png"]]
    assert shared["age"] == pytest.approx(alone["age"], abs=0.005)
    assert shared["refusals"] == alone["refusals"] * 2, "all workers say the same"
    unread, query, page, index = alone["refusals"][0]
    assert unread.startswith(f"embed: cannot read 1 of 2 files: {tmp_path / 'broken'}: ")
    assert query.startswith(f"--query={tmp_path / 'broken'}: cannot be read (")
    assert (page[:9], index[:8]) == ("--output=", "--index=")
    same_features(tmp_path / "features", tmp_path / "alone")
    names = [sorted(path.name for path in (folder / "features").iterdir()) for folder in (elsewhere, workdir)]
    assert names[0] == names[1]
    assert len(names[0]) == 3  # train, test and the photographs, each computed once
    for name in names[0]:
        same_features(elsewhere / "features" / name, workdir / "features" / name)


def same_features(*folders: Path) -> None:
    for array in ("backbone", "projection", "labels", "ids"):
        np.testing.assert_allclose(*(np.load(folder / f"{array}.npy") for folder in folders), atol=1e-4)


def test_the_answer_is_the_last_line_and_a_file(workdir):
    finished = run_script("linear_eval", f"--workdir={workdir}", "--cached", "--epochs=1")
    assert finished.status == 0, finished.output
    answer = json.loads(finished.stdout)
    assert answer == json.loads((workdir / "linear_eval.json").read_text())
    assert {"top1", "top5", "examples", "learning_rate", "held_out_top1"} <= set(answer)


def test_extracted_features_can_be_judged_as_the_run_is(workdir, subject, tmp_path):
    for split in ("train", "test"):
        about = commands.extract_of_run(str(workdir), None, None, split, str(tmp_path / f"{split}.npz"))
        assert about["backbone"] == 128
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
    with pytest.raises(UserError, match=r"wide\.npz: has 7 features, --train_features has 128$"):
        commands.features_from_files((files[0], str(tmp_path / "wide.npz")), "backbone")
    np.savez(tmp_path / "new.npz", backbone=np.zeros([2, 128]), labels=np.array([0, 10]))
    with pytest.raises(UserError, match=r"new\.npz: class 10 is missing in --train_features$"):
        commands.features_from_files((files[0], str(tmp_path / "new.npz")), "backbone")


def test_a_run_says_what_is_seen_of_images(workdir, subject, tmp_path):
    """Its recipe, unless the command line says otherwise; older runs, which say nothing, see the whole square."""
    settings = {"k": 20, "temperature": 0.07}
    by_run = commands.knn_of_run(subject, "backbone", **settings)
    assert by_run["center_crop_fraction"] == 0.875
    assert (by_run["train_split"], by_run["test_split"]) == ("train", "test")
    finished = run_script("knn_eval", f"--workdir={workdir}", "--center_crop_fraction=1")
    whole = json.loads(finished.stdout)
    assert whole["center_crop_fraction"] == 1.0 and whole["top1"] != by_run["top1"]
    older = shutil.copytree(workdir, tmp_path / "older")
    lines = (older / "run.flags").read_text().splitlines()
    (older / "run.flags").write_text("\n".join(line for line in lines if "center_crop" not in line))
    by_older = commands.knn_of_run(open_subject(str(older), None, None, None), "backbone", **settings)
    assert (by_older["center_crop_fraction"], by_older["top1"]) == (1.0, whole["top1"])
    with pytest.raises(UserError, match=r"^--center_crop_fraction=1\.5: must be above 0 and at most 1$"):
        open_subject(str(workdir), None, None, None, 1.5)


def test_extract_overwrites_nothing(workdir, tmp_path):
    with pytest.raises(UserError, match=r"^--output=.*: exists already, name a new file or folder$"):
        commands.extract_of_run(str(workdir), None, None, "train", str(tmp_path))


def test_a_run_measures_itself(tmp_path, whole_run):
    """At the end of each epoch, whatever the log lines in between, and without a trace in the training."""
    changes = {"online_knn_every": 1, "log_every": 3, "workdir": str(tmp_path)}
    instcls_tf.pretrain(PretrainConfig(**{**TINY, **changes}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 6, 8]
    measured = {line["step"]: line["knn_top1"] for line in lines if "knn_top1" in line}
    assert list(measured) == [4, 8]
    subject = open_subject(str(tmp_path), None, None, None)
    assert measured[8] == commands.knn_of_run(subject, "backbone", k=20, temperature=0.07)["top1"]
    losses = metrics_of(whole_run.workdir)["loss"]
    assert lines[1]["loss"] == pytest.approx(losses[3], abs=1e-4)
    assert lines[3]["loss"] == pytest.approx(losses[6:8].mean(), abs=1e-4)
    assert "knn_top1" not in load_metrics(str(tmp_path))
    with pytest.raises(UserError, match="has 2 measurements of nearest-neighbour accuracy, wanted at least 3"):
        accuracies_of_run(str(tmp_path))


def test_a_run_without_labels_cannot_measure_itself(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(5)])
    changes = {"dataset": f"folder:{tmp_path / 'photos'}", "batch_size": 4, "hard_negatives": 2}
    config = PretrainConfig(**{**TINY, **changes, "online_knn_every": 1, "workdir": str(tmp_path / "run")})
    config = config.replace(cache="ram")
    monkeypatch.setattr(cache, "with_cache", lambda *args: pytest.fail("the cache is filled first"))
    with pytest.raises(UserError, match=r"the train split has no labels.*; --online_knn_every=1 judges by both splits"):
        instcls_tf.pretrain(config)
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "linear_eval --learning_rate=x": "--learning_rate=x: must be a number",
    "linear_eval --workdir={run} --dataset=folder:{photos}": "--dataset=folder:{photos}: the train split has no labels,"
    " wanted PATH/{{train,test}}/CLASS/* or a TFDS dataset with the feature 'label', of two classes at"
    " least",
    "linear_eval --workdir={run} --train_features=x": "--test_features is missing: features come from two files or from"
    " none",
    "linear_eval --workdir={run} --train_features=x --test_features=y": "--train_features=x: needs --cached, the other"
    " protocol trains on images",
    "linear_eval --workdir={run} --cached --learning_rate=0.1": "--learning_rate=0.1: must be left out with --cached",
    "linear_eval --workdir={run} --l2=10": "--l2=10.0: must be given with --cached only",
    "knn_eval --workdir={run} --train_features=x --test_features=y --test_split=val": "--test_split=val: must be left"
    " out with --train_features",
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
