"""Pretraining as a user runs it: with and without a launcher, interrupted, continued, and with every kind of recipe."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import tensorflow as tf

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.pretraining import pretrain
from instcls_tf.run.workdir import load_run
from tests.commands import snapshot
from tests.end_to_end.conftest import PastRun, launched
from tests.end_to_end.runs import NUM_INSTANCES, STEPS, STEPS_PER_EPOCH, TINY, metrics_of, searches_of
from tests.images import write_images

INTERRUPTED_AT = 3  # in mid-epoch
METRICS = {"step", "epoch", "loss", "instance_top1", "learning_rate", "images_per_second", "data_wait_fraction"}


@pytest.fixture(scope="module")
def whole_run_of_two(tmp_path_factory) -> PastRun:
    return launched(tmp_path_factory.mktemp("two") / "run", workers=2)


@pytest.fixture(scope="module")
def interrupted_run_of_two(tmp_path_factory) -> PastRun:
    return launched(tmp_path_factory.mktemp("interrupted") / "run", workers=2, max_steps=INTERRUPTED_AT)


@pytest.mark.parametrize("fixture", ["whole_run", "whole_run_of_two"])
def test_a_run_leaves_what_the_documentation_promises(request, fixture):
    workdir = request.getfixturevalue(fixture).workdir
    promised = {"run.flags", "metrics.jsonl", "checkpoints", "contents.npy", "start.safetensors", "tensorboard"}
    assert {path.name for path in workdir.iterdir()} == promised
    assert load_run(str(workdir)) == PretrainConfig(**TINY, workdir=str(workdir))

    metrics = metrics_of(workdir)
    assert set(metrics) >= METRICS
    assert all(np.isfinite(column).all() for column in metrics.values())
    np.testing.assert_array_equal(metrics["step"], np.arange(1, STEPS + 1))
    np.testing.assert_allclose(metrics["epoch"], metrics["step"] / STEPS_PER_EPOCH)
    assert metrics["loss"][0] == pytest.approx(metrics["loss_expected_start"][0], abs=0.5)
    assert metrics["loss"][STEPS_PER_EPOCH:].mean() < metrics["loss"][:STEPS_PER_EPOCH].mean() - 0.02
    assert metrics["instance_top1"].min() >= 0
    assert metrics["instance_top1"].max() <= 1
    assert metrics["images_per_second"].min() > 0

    (events,) = (workdir / "tensorboard").iterdir()
    losses = {
        event.step: float(tf.make_ndarray(value.tensor))
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
        if value.tag == "loss"
    }
    np.testing.assert_allclose([losses[step] for step in metrics["step"]], metrics["loss"], rtol=1e-6)

    encoder = instcls_tf.load_encoder(str(workdir))
    embeddings = encoder(np.zeros([2, 16, 16, 3], np.uint8), training=False)
    assert embeddings.shape == [2, 128]
    rows = tf.train.load_checkpoint(str(workdir / "checkpoints")).get_tensor("classifier/rows")
    assert rows.shape == (NUM_INSTANCES, 128)
    assert np.isfinite(rows).all()


def test_each_epoch_reports_its_search(whole_run, whole_run_of_two):
    one, two = searches_of(whole_run.workdir), searches_of(whole_run_of_two.workdir)
    for searches in (one, two):
        assert list(searches) == [STEPS_PER_EPOCH, STEPS]
        first, second = searches.values()
        assert "hard_negative_churn" not in first
        assert 0 < second["hard_negative_churn"] < 1
        for search in (first, second):
            assert search["hard_negative_seconds"] > 0
            assert 0 < search["hard_negative_share"] < 1
    assert two[STEPS]["hard_negative_churn"] == pytest.approx(one[STEPS]["hard_negative_churn"], abs=0.01)


def test_progress_is_on_standard_error(whole_run):
    assert whole_run.finished.stdout == ""
    said = whole_run.finished.stderr.splitlines()
    assert said[0] == "digits: 1437 instances = classes, 1 worker(s), 4 steps per epoch, 2 epochs"
    assert said[-1] == f"done: {whole_run.workdir} (checkpoint at step 8 of 8)"


def test_progress_comes_from_rank_0_only(whole_run_of_two):
    finished = whole_run_of_two.finished
    assert finished.stdout == ""
    said = finished.said_by(0)
    assert said[0] == "digits: 1437 instances = classes, 2 worker(s), 4 steps per epoch, 2 epochs"
    assert said[-1] == f"done: {whole_run_of_two.workdir} (checkpoint at step 8 of 8)"
    assert finished.said_by(1) == []


def test_two_workers_train_as_one_does(whole_run, whole_run_of_two):
    one, two = metrics_of(whole_run.workdir), metrics_of(whole_run_of_two.workdir)
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
    np.testing.assert_array_equal(two["learning_rate"], one["learning_rate"])


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_goes_on(request, tmp_path, interrupted_run_of_two, workers):
    metrics = metrics_of(interrupted_run_of_two.workdir)
    np.testing.assert_array_equal(metrics["step"], np.arange(1, INTERRUPTED_AT + 1))

    workdir = tmp_path / "run"
    shutil.copytree(interrupted_run_of_two.workdir, workdir)
    finished = launched(workdir, workers).finished
    said = finished.stderr.splitlines() if workers == 1 else finished.said_by(0)
    assert f"continuing {workdir} from step {INTERRUPTED_AT}" in said
    metrics = metrics_of(workdir)
    np.testing.assert_array_equal(metrics["step"], np.arange(1, STEPS + 1))

    whole = request.getfixturevalue("whole_run_of_two" if workers == 2 else "whole_run").workdir
    # The epoch that was cut in two has no search to report; the next one compares with the lists that were saved.
    assert list(searches_of(workdir)) == [STEPS]
    churns = [searches_of(folder)[STEPS]["hard_negative_churn"] for folder in (workdir, whole)]
    assert churns[0] == pytest.approx(churns[1], abs=0.01)
    expected = metrics_of(whole)
    rows, expected_rows = (
        tf.train.load_checkpoint(str(folder / "checkpoints")).get_tensor("classifier/rows")
        for folder in (workdir, whole)
    )
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-4)
    np.testing.assert_allclose(rows, expected_rows, atol=1e-3)


def test_nine_images_on_three_workers(tmp_path):
    """Batches of 4, 4 and 1 for three workers, two of whom have nothing in the last; begun by one worker.

    Eleven images are to be shown, for which one epoch is too short.
    """
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(9)])
    dataset = {"dataset": f"folder:{tmp_path / 'photos'}", "augmentation": "none"}
    changes = {**dataset, "batch_size": 4, "micro_batch": 1, "hard_negatives": 8, "learning_rate": 0.01}
    changes |= {"epochs": 1, "exposures": 11}
    workdir = tmp_path / "run"
    instcls_tf.pretrain(PretrainConfig(**{**TINY, **changes, "workdir": str(workdir), "max_steps": 4}))
    launched(workdir, workers=3, **changes)
    metrics = metrics_of(workdir)
    np.testing.assert_array_equal(metrics["step"], np.arange(1, 7))
    assert np.isfinite(metrics["loss"]).all()


# ------------------------------------------------------------------------------------------ in this process, for speed


def recorded(monkeypatch, config: PretrainConfig) -> list[list[int]]:
    """Runs `pretrain` and returns the instance ids of each of its steps."""
    seen = []
    with_step = pretrain.StopRequest.with_step

    def with_recorded_step(request, train_step):
        make_step = with_step(request, train_step)

        def step(views, instance_ids, learning_rate):
            seen.append(instance_ids.numpy().tolist())
            return make_step(views, instance_ids, learning_rate)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.StopRequest, "with_step", with_recorded_step)
        instcls_tf.pretrain(config)
    return seen


def test_interruptions_change_nothing_on_one_worker(tmp_path, monkeypatch, capsys, whole_run):
    """Stopped after the initialisation and in mid-epoch: still the uninterrupted run; when done, it stays as it is."""
    workdir = tmp_path / "run"
    config = PretrainConfig(**TINY, workdir=str(workdir))
    seen = recorded(monkeypatch, config.replace(max_steps=0))
    assert seen == []
    assert (workdir / "metrics.jsonl").read_text() == ""
    assert instcls_tf.load_encoder(config.workdir) is not None
    for max_steps in (INTERRUPTED_AT, None):
        seen += recorded(monkeypatch, config.replace(max_steps=max_steps))
    for epoch in (seen[:STEPS_PER_EPOCH], seen[STEPS_PER_EPOCH:]):
        assert sorted(itertools.chain(*epoch)) == list(range(NUM_INSTANCES))
    assert seen[0] != seen[STEPS_PER_EPOCH]
    expected, metrics = metrics_of(whole_run.workdir), metrics_of(workdir)
    np.testing.assert_array_equal(metrics["step"], expected["step"])
    np.testing.assert_allclose(metrics["loss"], expected["loss"], atol=1e-4)

    before = snapshot(workdir)
    capsys.readouterr()
    assert recorded(monkeypatch, config) == []
    assert capsys.readouterr().err.splitlines()[-1] == f"done: {workdir} (checkpoint at step 8 of 8)"
    after = snapshot(workdir)
    assert {path: content for path, (_, content) in after.items()} == {
        path: content for path, (_, content) in before.items()
    }
    kept = [path for path in before if path.startswith(("checkpoints", "run.flags", "tensorboard"))]
    assert [after[path] for path in kept] == [before[path] for path in kept]


# What does not depend on each other goes together: each entry costs a graph.
RECIPES = {
    "bfloat16_cross_entropy": {"precision": "mixed_bfloat16", "smoothing_loss": "cross_entropy"},
    "float16_linear_head": {"precision": "mixed_float16", "mlp_head": False},
    "sampled_classes_one_view": {
        "sampled_classes": 300,
        "smoothing": 0.0,
        "views": 1,
        "augmentation": "simclr",
        "image_size": 33,
        "stem": "imagenet",
    },
    "raw_batch_bn": {"classifier_init": "raw_batch_bn"},
    "xla": {"class_passes": "xla"},
    "int8": {
        "classifier_init": "raw_fixed_bn",
        "class_weights_dtype": "int8",
        "class_momentum_dtype": "int8",
        "class_products_dtype": "bfloat16",
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(tmp_path, name):
    quick = {"batch_size": 64, "max_steps": 2, "classifier_init": "random", "workdir": str(tmp_path)}
    config = PretrainConfig(**{**TINY, **quick, **RECIPES[name]})
    assert instcls_tf.pretrain(config)["step"] == 2
    metrics = metrics_of(tmp_path)
    np.testing.assert_allclose(metrics["loss"], metrics["loss_expected_start"], atol=0.6)
    assert instcls_tf.load_encoder(str(tmp_path)).trainable_variables[0].dtype == tf.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_classifier_that_is_rounded_goes_on(tmp_path, dtype):
    """Class weights, momentum and products: interrupted and continued it is the whole run, to the last bit stored."""
    kept = {"class_weights_dtype": dtype, "class_momentum_dtype": dtype, "class_products_dtype": "bfloat16"}
    quick = {"batch_size": 64, "classifier_init": "random", "smoothing": 0.0, **kept}
    stored = []
    for stops in ((4,), (2, 4)):
        workdir = tmp_path / str(len(stops))
        config = PretrainConfig(**{**TINY, **quick, "workdir": str(workdir)})
        for max_steps in stops:
            assert instcls_tf.pretrain(config.replace(max_steps=max_steps))["step"] == max_steps
        reader = tf.train.load_checkpoint(str(workdir / "checkpoints"))
        names = ("rows", "momentum", "rows_scales", "momentum_scales")[: 4 if dtype == "int8" else 2]
        stored.append([reader.get_tensor(f"classifier/{name}") for name in names])
    assert {part.dtype.name for part in stored[0][:2]} == {dtype}
    for whole, continued in zip(*stored):
        difference = whole.astype(np.float32) - continued.astype(np.float32)
        assert np.mean(difference != 0) < 1e-3  # threads of the encoder add up in any order
        assert np.abs(whole.astype(np.float32)).max() > 0


def test_a_folder_of_any_name_and_nesting(tmp_path):
    folder = tmp_path / "my photos, 写真 & été"
    write_images(folder, [f"trip {index}/première {index}.jpg" for index in range(5)] + ["top.JPEG"])
    (folder / "notes.txt").write_text("no image")
    workdir = tmp_path / "rún = 1"
    changes = {"dataset": f"folder:{folder}", "augmentation": "simclr", "batch_size": 4, "hard_negatives": 2}
    quick = {"max_steps": 2, "classifier_init": "random", "workdir": str(workdir)}
    config = PretrainConfig(**{**TINY, **changes, **quick})
    assert np.isfinite(instcls_tf.pretrain(config)["loss"])
    assert load_run(str(workdir)) == config
    rows = tf.train.load_checkpoint(str(workdir / "checkpoints")).get_tensor("classifier/rows")
    assert rows.shape == (6, 128)
