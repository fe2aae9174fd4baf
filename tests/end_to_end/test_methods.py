"""The rivals and the levers through the whole story: they learn, go on where they were stopped, and can be judged."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import instcls_tf
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.evaluation.commands import knn_of_run
from instcls_tf.evaluation.subject import open_subject
from instcls_tf.run.metrics import read_metrics
from tests.commands import run_command, under_launcher
from tests.encoders import knn_top1
from tests.end_to_end.method_runs import RUNS, STOPS, config_of
from tests.end_to_end.runs import STEPS_PER_EPOCH

TIMEOUT = 1500
ONE_IMAGE = 1.5 / 360  # of accuracy, on the test images of digits: what float32 rounds may change one vote


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """On one worker of one core: with more threads, sums are not rounded alike from run to run."""
    folder = tmp_path_factory.mktemp("alone")
    own = str(min(os.sched_getaffinity(0)))
    launched(1, folder, ["taskset", "--cpu-list", own], "in_parts")
    return folder


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launched(2, folder, [])
    return folder


def launched(workers: int, folder: Path, before: list[str], *arguments: str) -> None:
    command = [sys.executable, "-m", "tests.end_to_end.method_runs", str(folder), *arguments]
    finished = run_command([*before, *under_launcher(workers, command)], timeout=TIMEOUT)
    assert finished.status == 0, finished.output[-8000:]


def losses(workdir: Path) -> np.ndarray:
    lines = read_metrics(str(workdir))
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([line["loss"] for line in lines])


def state(workdir: Path) -> dict[str, np.ndarray]:
    """All tensors of the last checkpoint."""
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_falls(alone, name):
    curve = losses(alone / name)
    per_epoch = 8 if name == "pic" else STEPS_PER_EPOCH
    assert len(curve) == config_of(name, alone).epochs * per_epoch
    assert np.isfinite(curve).all()
    if name == "moco_v2":  # its first queue is of random keys, from which every image is easy to tell
        assert curve[0] < 3
        curve = curve[1:]
    if name == "pic":  # its windows share images; an epoch later they have been away for long
        curve, per_epoch = curve[:per_epoch], per_epoch // 2
    if name == "contrast_epochs":  # NT-Xent among 720 rows, then a classification of 1,437 classes
        assert curve[STEPS_PER_EPOCH - 1] < curve[0] - 0.02
        assert curve[STEPS_PER_EPOCH] > np.log(1437) - 0.5
        assert curve[-1] < curve[STEPS_PER_EPOCH]
    else:
        assert curve[-per_epoch:].mean() < curve[:per_epoch].mean() - 0.02


@pytest.mark.parametrize("name", STOPS)
def test_a_run_in_parts_is_the_whole_run(alone, name):
    whole, parts = state(alone / name), state(alone / f"{name}_in_parts")
    assert whole.keys() == parts.keys()
    assert [key for key in whole if not np.array_equal(whole[key], parts[key])] == []
    np.testing.assert_array_equal(losses(alone / name), losses(alone / f"{name}_in_parts"))


# MoCo's is not among them: it shuffles the rows of a worker among that worker's BN groups.
@pytest.mark.parametrize("name", [name for name in RUNS if name != "moco_v2"])
def test_two_workers_learn_what_one_does(alone, of_two, name):
    np.testing.assert_allclose(losses(of_two / name), losses(alone / name), rtol=1e-4)


def test_two_workers_train_moco_as_well(of_two):
    curve = losses(of_two / "moco_v2")
    assert curve[-STEPS_PER_EPOCH:].mean() < curve[1 : 1 + STEPS_PER_EPOCH].mean() - 0.02


@pytest.mark.parametrize("name", RUNS)
def test_metrics_have_the_marks_of_eq_1_only_where_it_is_minimised(alone, name):
    lines = read_metrics(str(alone / name))
    has_marks = ["loss_floor" in line for line in lines]
    expected = {"prior_every": [True] * 8, "contrast_epochs": [False] * 4 + [True] * 4}
    assert has_marks == expected.get(name, [False] * len(lines))
    assert all(0 <= line["instance_top1"] <= 1 for line in lines)
    assert all(("contrast_loss" in line) == (name == "batch_contrast") for line in lines)


@pytest.mark.parametrize("name", ["simclr", "moco_v2", "pic", "diet"])
def test_features_are_judged(alone, name):
    subject = open_subject(str(alone / name), None, None, None)
    result = knn_of_run(subject, "backbone", k=20, temperature=0.07)
    assert result["examples"] == 360
    encoders = instcls_tf.load_encoder(str(alone / name)), networks.make_encoder(subject.config)
    trained, untrained = (knn_top1(encoder, subject.config, subject.splits) for encoder in encoders)
    assert result["top1"] == pytest.approx(trained, abs=ONE_IMAGE)
    assert result["top1"] != pytest.approx(untrained, abs=ONE_IMAGE)
    assert 0.15 < result["top1"] <= 1  # chance is 10 %


def test_diet_has_no_projection_to_judge(alone):
    subject = open_subject(str(alone / "diet"), None, None, None)
    with pytest.raises(UserError) as refusal:
        knn_of_run(subject, "projection", k=20, temperature=0.07)
    wanted = "backbone: --method=diet leaves the projection untrained"
    assert str(refusal.value) == f"--features=projection: must be {wanted}"


def test_epochs_of_contrast_leave_the_class_weights_alone(alone, tmp_path):
    """Gaussian or 0, they mean nothing yet; what follows is taken from the trained network, without momentum."""
    config = config_of("contrast_epochs", tmp_path / "run")
    instcls_tf.pretrain(config.replace(max_steps=3))
    tensors = state(tmp_path / "run")
    assert not np.any(tensors["classifier/rows"])
    assert not np.any(tensors["classifier/momentum"])
    assert "classifier/hard_negatives" not in tensors
    norms = np.linalg.norm(state(alone / "contrast_epochs")["classifier/rows"], axis=1)
    np.testing.assert_allclose(norms, 1, atol=0.2)
