"""The pictures of a comparison are those of the features beside them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.distributed import collectives
from instcls_tf.errors import UserError
from instcls_tf.evaluation import features
from instcls_tf.report import comparison, figures, pictures
from instcls_tf.run.workdir import begin_run
from tests.images import write_images


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


def test_splits_without_labels_are_refused(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", [f"{split}/{i}.jpg" for split in ("train", "test") for i in range(3)])
    config = PretrainConfig(dataset=f"folder:{tmp_path}/photos", workdir=str(tmp_path / "run"))
    begin_run(config)
    for rank, is_made in ((1, False), (0, True)):  # one worker alone tries the folder: several would collide there
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        with pytest.raises(UserError, match="the train split has no labels, wanted"):
            comparison.compare_runs({"run": config.workdir}, str(tmp_path / "out"))
        assert (tmp_path / "out").exists() == is_made


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


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Makes runs of recipes that see images otherwise, with networks that give the pixels they are shown."""
    write_images(tmp_path / "photos", [f"{split}/{n % 3}/{n}.png" for split in ("train", "test") for n in range(24)])

    def make(**recipes: dict) -> dict[str, str]:
        for name, changes in recipes.items():
            settings = {"dataset": f"folder:{tmp_path}/photos", "workdir": str(tmp_path / name), **changes}
            begin_run(PretrainConfig(**settings))
        return {name: str(tmp_path / name) for name in recipes}

    monkeypatch.setattr(comparison, "backbone_of_run", lambda workdir: features.pixels)
    return make


def test_the_order_of_the_runs_does_not_matter(runs, tmp_path):
    """Each is judged at its own image size, crop and reading, and pixels at those of the run that sees most."""
    large = {"image_size": 24, "center_crop_fraction": 0.5, "background": "black"}
    given = runs(small={"image_size": 8, "center_crop_fraction": 1}, large=large)
    found = [
        comparison.compare_runs(dict(order), str(tmp_path / "out")).result
        for order in (given.items(), reversed(given.items()), [("large", given["large"])])
    ]
    assert found[0] == found[1] and list(found[0]) != list(found[1])
    assert found[0]["large"] == found[2]["large"] and found[0]["small"] == found[0]["raw pixels"]
    assert found[0]["small"] != found[0]["large"]


def test_runs_on_different_datasets_are_refused(runs, tmp_path):
    given = runs(here={"dataset": "folder:photos/"}, there={"dataset": "folder:photos"}, other={"dataset": "digits"})
    with pytest.raises(UserError) as refusal:
        comparison.compare_runs(given, str(tmp_path / "out"))
    assert str(refusal.value) == (
        "--runs: here was trained on --dataset=folder:photos/, other on --dataset=digits, wanted runs on one dataset"
    )


def test_raw_pixels_of_large_images_are_averaged_down():
    images = np.random.default_rng(0).integers(0, 256, [2, 96, 96, 3], np.uint8)
    means = tf.constant(images.reshape(2, 32, 3, 32, 3, 3).mean(axis=(2, 4), dtype=np.float32))
    np.testing.assert_allclose(features.pixels_of(96)(images), features.pixels(means), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(features.pixels_of(8)(images[:, :8, :8]), features.pixels(images[:, :8, :8]))


def test_curves_are_those_that_the_marks_of_eq_1_are_for(tmp_path):
    """The classification's own loss where NT-Xent is added to it; no marks beside another method, or another tau."""
    metrics = {"epoch": np.arange(3.0), "loss": np.array([9.0, 8.0, 7.0]), "contrast_loss": np.array([4.0, 3.0, 2.0])}
    plain = PretrainConfig(workdir=str(tmp_path))
    for changes, losses, num_lines in (
        ({}, [9, 8, 7], 4),
        ({"batch_contrast": 0.5}, [7, 6.5, 6], 4),
        ({"temperature": 0.3}, [9, 8, 7], 2),
        ({"method": "simclr"}, [9, 8, 7], 2),
    ):
        axes = figures.new_figure(4, 3).subplots()
        pictures._draw_curves(axes, {"a": metrics, "b": metrics}, {"a": plain, "b": plain.replace(**changes)}, 1000)
        assert len(axes.get_lines()) == num_lines, changes
        np.testing.assert_allclose(axes.get_lines()[1].get_ydata(), losses)


def test_the_epochs_of_contrast_are_no_part_of_the_classification(tmp_path):
    """Their lines have no NT-Xent beside the loss, which is NT-Xent."""
    lines = [{"step": 10 * epoch, "epoch": float(epoch), "loss": 9.0 - epoch} for epoch in range(1, 5)]
    log = [line if line["epoch"] <= 2 else {**line, "contrast_loss": 2.0} for line in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    config = PretrainConfig(workdir=str(tmp_path), batch_contrast=0.5, contrast_epochs=2)
    metrics = pictures.load_metrics(config.workdir, config.contrast_epochs)
    assert pictures._loss(metrics, config).tolist() == [5.0, 4.0] and metrics["epoch"].tolist() == [3.0, 4.0]
    assert len(pictures.load_metrics(config.workdir)["loss"]) == 4
