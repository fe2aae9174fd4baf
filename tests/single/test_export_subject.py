"""What a card tells of the run that was exported."""

from __future__ import annotations

import json

import pytest

from flags import evaluation
from instcls_tf.evaluation.recipes import BACKBONE, PIXELS, PROJECTION
from instcls_tf.export.subject import knn_of_step
from instcls_tf.run.workdir import RESULTS

MEASURED = {
    "top1": 0.5,
    "top5": 0.9,
    "examples": 10,
    "num_neighbors": 20,
    "features": "backbone",
    "dataset": "folder:/home/me/photos",
    "step": 8,
}


def test_the_accuracy_of_this_very_network(tmp_path):
    (tmp_path / "knn_eval.json").write_text(json.dumps(MEASURED))
    told = {name: MEASURED[name] for name in ("top1", "examples", "num_neighbors", "features")}
    assert knn_of_step(str(tmp_path), 8) == {**told, "dataset": "folder:photos"}
    assert knn_of_step(str(tmp_path), 12) is None


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"top1": 0.97, "features": "pixels", "examples": 10}), "{}"])
def test_nothing_else_is_told(tmp_path, text):
    """Of raw pixels, which are of no step; cut off; nothing at all."""
    assert knn_of_step(str(tmp_path), 8) is None
    (tmp_path / "knn_eval.json").write_text(text)
    assert knn_of_step(str(tmp_path), 8) is None


def test_what_is_not_of_the_network_leaves_its_accuracy_alone():
    files = ("train.npz", "test.npz")
    assert (
        evaluation.kept_as("knn_eval", None, BACKBONE) == evaluation.kept_as("knn_eval", None, PROJECTION) == "knn_eval"
    )
    others = [evaluation.kept_as("knn_eval", None, PIXELS), evaluation.kept_as("knn_eval", files)]
    others.append(evaluation.kept_as("linear_eval", files))
    assert others == ["knn_eval_pixels", "knn_eval_files", "linear_eval_files"] and set(others) < set(RESULTS)
