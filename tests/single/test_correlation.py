"""Instance against semantic accuracy over a run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.report.correlation import accuracies_of_run, correlation, draw_correlation


def write_metrics(folder, lines: list[dict], **settings) -> None:
    (folder / "run.flags").write_text(PretrainConfig(workdir=str(folder), **settings).as_flags())
    text = "".join(json.dumps({"step": step, **line}) + "\n" for step, line in enumerate(lines))
    (folder / "metrics.jsonl").write_text(text + '{}\n{"cut')


def test_instance_accuracy_is_the_mean_since_the_last_measurement(tmp_path):
    lines = [
        {"epoch": 0.1, "knn_top1": 0.5},
        {"epoch": 0.5, "instance_top1": 0.0},
        {"epoch": 1.0, "instance_top1": 0.2, "knn_top1": 0.3},
        {"epoch": 2.0, "instance_top1": 0.3, "knn_top1": 0.35},
        {"epoch": 2.5, "instance_top1": 0.4},
        {},
        {"epoch": 3.0, "instance_top1": 0.6, "knn_top1": 0.33},
        {"epoch": 3.5, "instance_top1": 0.9},
    ]
    write_metrics(tmp_path, lines)
    columns = accuracies_of_run(str(tmp_path))
    assert columns == {
        "epoch": [1.0, 2.0, 3.0], "instance_top1": pytest.approx([0.1, 0.3, 0.5]), "knn_top1": [0.3, 0.35, 0.33]
    }  # fmt: skip
    instance, semantic = (np.array(columns[name]) for name in ("instance_top1", "knn_top1"))
    deviations = (instance - instance.mean()) @ (semantic - semantic.mean())
    assert correlation(columns) == pytest.approx(deviations / (3 * instance.std() * semantic.std()))
    draw_correlation(str(tmp_path / "x.png"), columns)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_epochs_of_contrast_do_not_count(tmp_path):
    """Their instance accuracy is that within a batch."""
    lines = [
        {"epoch": 1.0, "instance_top1": 0.9, "knn_top1": 0.1},
        {"epoch": 2.0, "instance_top1": 0.8, "knn_top1": 0.2},
        {"epoch": 3.0, "instance_top1": 0.1, "knn_top1": 0.3},
        {"epoch": 4.0, "instance_top1": 0.2, "knn_top1": 0.4},
        {"epoch": 5.0, "instance_top1": 0.3, "knn_top1": 0.5},
    ]
    write_metrics(tmp_path, lines, contrast_epochs=2)
    assert accuracies_of_run(str(tmp_path))["instance_top1"] == [0.1, 0.2, 0.3]


def test_a_constant_has_no_correlation(tmp_path):
    columns = {"epoch": [1, 2, 3], "instance_top1": [0.0, 0.0, 0.0], "knn_top1": [0.1, 0.2, 0.3]}
    assert correlation(columns) is None
    draw_correlation(str(tmp_path / "x.png"), columns)


def test_a_run_that_did_not_measure_itself(tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(.*metrics\.jsonl: No such file or directory\)$"):
        accuracies_of_run(str(tmp_path))
    write_metrics(tmp_path, [{"epoch": 1.0, "instance_top1": 0.2, "knn_top1": 0.3}])
    with pytest.raises(UserError, match=r"has 1 measurements .*: pretrain with --online_knn_every=1$"):
        accuracies_of_run(str(tmp_path))
