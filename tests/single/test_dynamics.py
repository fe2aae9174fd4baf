"""What moves during a run, against derivatives by differences and against sums written out."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil

import numpy as np
import pytest

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation import dynamics, similarity
from instcls_tf.evaluation.dynamics import Rows
from instcls_tf.report.dynamics import dynamics_with_picture
from tests import reference
from tests.end_to_end.runs import TINY

M, V, D, N, K = 4, 3, 5, 9, 2


def some(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def rows_of(ids: list[int]) -> Rows:
    embeddings = some(len(ids), V, D)
    return Rows(embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True), np.array(ids))


def test_alignment_and_uniformity():
    rows = rows_of([0, 1, 2, 3])
    pairs = list(itertools.combinations(np.ndindex(M, V), 2))
    squares = {pair: np.sum(np.square(rows.embeddings[pair[0]] - rows.embeddings[pair[1]])) for pair in pairs}
    same = [square for (a, b), square in squares.items() if a[0] == b[0]]
    other = [np.exp(-2 * square) for (a, b), square in squares.items() if a[0] != b[0]]
    found = dynamics.alignment_and_uniformity(rows)
    assert found == pytest.approx({"alignment": np.mean(same), "uniformity": np.log(np.mean(other))})
    assert list(dynamics.alignment_and_uniformity(Rows(rows.embeddings[:, :1], rows.ids))) == ["uniformity"]


@pytest.mark.parametrize("smoothing_loss", ["marginal", "cross_entropy"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_parts_of_the_gradient_are_the_gradient(smoothing_loss, smoothing):
    """The coefficients times the directions are the dense reference's gradient, and the parts make the whole."""
    config = PretrainConfig(smoothing=smoothing, smoothing_loss=smoothing_loss, temperature=0.2)
    embeddings, weights, own = rows_of([0]).embeddings[0], some(N, D, seed=1) * 3, np.array([2, 0, 7])
    directions = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    hard = dynamics.hardest(directions, own, K) if smoothing else None
    coefficients = dynamics.loss_coefficients(config, embeddings @ directions.T, own, hard)
    y = reference.labels(own, hard, smoothing, N)
    _, gradient, _, _ = reference.softmax_loss(embeddings, weights, y, 0.2, smoothing_loss)
    np.testing.assert_allclose(
        reference.through_norm(coefficients @ directions, embeddings) / (0.2 * V), gradient, atol=1e-12
    )
    shares = dynamics.gradient_shares(embeddings, directions, coefficients, own, hard)
    assert sum(shares.values()) == pytest.approx(1)
    assert ("hard_share" in shares) == bool(smoothing)


def test_shares_leave_out_what_lies_along_the_embedding():
    """Own class and embedding are one direction: nothing of the own part moves the embedding."""
    directions, embeddings = np.eye(3), np.eye(3)[:1]
    shares = dynamics.gradient_shares(
        embeddings, directions, np.array([[-0.7, 0.5, 0.2]]), np.array([0]), np.array([[1]])
    )
    assert shares == pytest.approx({"own_share": 0.0, "hard_share": 0.5 / 0.7, "rest_share": 0.2 / 0.7})


def test_hardest_are_the_nearest_others():
    weights = some(N, D)
    wanted = reference.hard_negatives(weights, K)[[3, 5]]
    found = dynamics.hardest(reference.normalize(weights), np.array([3, 5]), K)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(wanted, axis=1))
    assert dynamics.hardest(reference.normalize(weights), np.array([3]), 100).shape == (1, N - 1)


def test_turns_of_class_weights():
    """All weights have turned by 30 degrees; a visit's turn is that of a step of SGD, summed up by its momentum."""
    config = PretrainConfig(smoothing=0, temperature=0.2, batch_size=M, momentum=0.5, classifier_learning_rate_factor=2)
    rows, now = rows_of([0, 1, 2, 3]), some(N, D, seed=2)
    turned, length = some(N, D, seed=3), np.linalg.norm(now, axis=1, keepdims=True)
    turned -= np.sum(turned * now, axis=1, keepdims=True) / length**2 * now
    turned *= length / np.linalg.norm(turned, axis=1, keepdims=True)
    before = 5 * (np.cos(np.pi / 6) * now + np.sin(np.pi / 6) * turned)
    found = dynamics.of_class_weights(config, now, before, rows, 0.01)
    assert found["turn"] == pytest.approx(30)
    assert found["norm"] == pytest.approx(length.mean())
    angles = []
    for index, instance in enumerate(rows.ids):
        # The mean over this instance's V rows alone, which are one of M parts of the batch's.
        y = reference.labels(np.repeat(instance, V), None, 0, N)
        _, _, gradient, _ = reference.softmax_loss(rows.embeddings[index], now, y, 0.2, "marginal")
        move = 0.01 * 2 * gradient[instance] / M / (1 - 0.5)
        angles.append(np.degrees(np.arctan(np.linalg.norm(move) / np.linalg.norm(now[instance]))))
    assert found["visit_turn"] == pytest.approx(np.mean(angles))


def test_a_batch_holds_no_more_than_all_instances():
    now, rows = some(N, D, seed=2), rows_of([0, 1, 2, 3])
    turns = [
        dynamics.of_class_weights(PretrainConfig(smoothing=0, batch_size=size), now, None, rows, 0.01)["visit_turn"]
        for size in (N, 10 * N)
    ]
    assert turns[0] == turns[1] > 0


def test_instances_some_at_a_time(monkeypatch):
    config, rows = PretrainConfig(temperature=0.2, batch_size=M, hard_negatives=K), rows_of([0, 1, 2, 5])
    whole = dynamics.of_class_weights(config, some(N, D, seed=2), None, rows, 0.01)
    monkeypatch.setattr(dynamics, "_MOST_COSINES", 3 * N * V)  # three instances, then one
    assert dynamics.of_class_weights(config, some(N, D, seed=2), None, rows, 0.01) == pytest.approx(whole)


def test_a_sample_of_classes_has_no_shares():
    config = PretrainConfig(temperature=0.2, batch_size=M, smoothing=0, sampled_classes=4)
    found = dynamics.of_class_weights(config, some(N, D, seed=2), None, rows_of([0, 1]), 0.01)
    assert list(found) == ["norm", "own_cosine", "instance_top1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> PretrainConfig:
    """Two epochs, the first of NT-Xent alone."""
    workdir = tmp_path_factory.mktemp("run")
    config = PretrainConfig(**{**TINY, "workdir": str(workdir), "contrast_epochs": 1, "keep_checkpoints": 9})
    instcls_tf.pretrain(config)
    return config


def test_of_a_run(run, tmp_path):
    """There are no class weights after the first epoch, and no turn after the second, the first that has them."""
    answer = dynamics_with_picture(run.workdir, None, instances=200)
    first, second = answer.result["checkpoints"]
    assert (first["step"], second["step"]) == (4, 8)
    assert list(first) == ["step", "epoch", "alignment", "uniformity"]
    assert {*second} - {*first} == {
        "norm", "own_cosine", "hard_cosine", "instance_top1", "own_share", "hard_share", "rest_share", "visit_turn"
    }  # fmt: skip
    assert second["norm"] == pytest.approx(1, abs=0.2)
    assert second["own_cosine"] > second["hard_cosine"] - 0.2
    assert second["visit_turn"] > 0
    assert answer.text.splitlines()[2].endswith("| – |")
    answer.picture.draw(str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_epochs_of_a_sliding_window(tmp_path):
    """They are the run's, which are not N over the batch."""
    changes = {"method": "pic", "pic_window": 128, "pic_stride": 16, "batch_size": 100, "epochs": 1}
    config = PretrainConfig(**{**TINY, **changes, "workdir": str(tmp_path)})
    metrics = instcls_tf.pretrain(config)
    (line,) = dynamics.dynamics_of_run(str(tmp_path), None, instances=100)
    assert (line["step"], line["epoch"]) == (metrics["step"], 1.0)


def test_checkpoints_of_another_run_are_left_out(run, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "run")
    flags = tmp_path / "run" / "run.flags"
    flags.write_text(re.sub("^# run .*", "# run 0123456789abcdef", flags.read_text()))
    with pytest.raises(UserError, match="has no whole checkpoint"):
        dynamics.dynamics_of_run(str(tmp_path / "run"), None, 10)


@pytest.mark.parametrize("look", ["similarities_of_run", "dynamics_of_run"])
def test_images_that_the_run_has_no_class_for(run, tmp_path, monkeypatch, look):
    """A folder that has grown since: told before anything is computed."""
    module = {"similarities_of_run": similarity, "dynamics_of_run": dynamics}[look]
    source = open_source("digits")
    grown = dataclasses.replace(
        source, images=np.concatenate([source.images, source.images[:1]]), labels=np.append(source.labels, 0)
    )
    monkeypatch.setattr(module, "open_training_source", lambda *args, **kwargs: grown)
    with pytest.raises(UserError, match="was made for 1437 instances, the dataset has 1438 now"):
        getattr(module, look)(run.workdir, None, 10)


def test_diet_has_no_projection_to_look_at(run, tmp_path):
    (tmp_path / "run.flags").write_text(PretrainConfig(method="diet", workdir=str(tmp_path)).as_flags())
    with pytest.raises(UserError, match=r"^--method=diet: must be another than diet"):
        dynamics.dynamics_of_run(str(tmp_path), None, 10)


def test_a_run_without_checkpoints(tmp_path, run):
    (tmp_path / "run.flags").write_text(run.as_flags())
    with pytest.raises(UserError, match="has no whole checkpoint"):
        dynamics.dynamics_of_run(str(tmp_path), None, 10)
