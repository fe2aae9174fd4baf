"""The pictures of a comparison are those of the features beside them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation import features
from instcls_tf.report import comparison
from instcls_tf.run.workdir import begin_run
from tests.end_to_end.runs import write_images


def test_images_that_cannot_be_read_have_no_row(tmp_path):
    for index in range(7):
        png = tf.io.encode_png(np.full([4, 4, 3], 40 + index, np.uint8)).numpy()
        (tmp_path / f"{index}.png").write_bytes(b"torn" if index in (2, 4) else png)
    source = open_source(f"folder:{tmp_path}")
    vectors, _ = features.extract(features.pixels, source, image_size=4)
    rows = np.array([4, 1, 2, 3, 1])
    images = comparison._images(source, 4, rows, len(vectors))
    assert images[:, 0, 0, 0].tolist() == [46, 41, 43, 45, 41]


def test_a_run_that_is_not_there_is_named_by_the_command_s_flag(tmp_path):
    """The first of two as well, before anything is judged; and one without a checkpoint."""
    config = PretrainConfig(dataset="digits", workdir=str(tmp_path / "run"))
    begin_run(config)
    with pytest.raises(UserError, match=r"^--runs=/nope: holds no run"):
        comparison.compare_runs({"a": "/nope", "b": config.workdir}, str(tmp_path / "out"))
    with pytest.raises(UserError, match=f"^--runs={config.workdir}: "):
        comparison.compare_runs({"b": config.workdir}, str(tmp_path / "out"))


def test_splits_without_labels_are_refused(tmp_path):
    write_images(tmp_path / "photos", [f"{split}/{i}.jpg" for split in ("train", "test") for i in range(3)])
    config = PretrainConfig(dataset=f"folder:{tmp_path}/photos", workdir=str(tmp_path / "run"))
    begin_run(config)
    with pytest.raises(UserError, match="the train split has no labels, wanted"):
        comparison.compare_runs({"run": config.workdir}, str(tmp_path / "out"))


def test_labels_that_are_not_public_are_refused(tmp_path, monkeypatch):
    """As those of some test splits of TFDS, whose classes have names all the same."""
    write_images(
        tmp_path / "photos", [f"{split}/{'ab'[i % 2]}/{i}.jpg" for split in ("train", "test") for i in range(3)]
    )
    config = PretrainConfig(dataset=f"folder:{tmp_path}/photos", image_size=16, workdir=str(tmp_path / "run"))
    begin_run(config)
    monkeypatch.setattr(comparison, "open_splits", lambda *args, **kwargs: (train, hidden))
    train, test = (open_source(config.dataset, split) for split in ("train", "test"))
    hidden = dataclasses.replace(test, labels=np.full([3], -1, np.int32))
    with pytest.raises(UserError, match="the test split has images without labels"):
        comparison.compare_runs({"run": config.workdir}, str(tmp_path / "out"))
