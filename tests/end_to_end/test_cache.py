"""Runs with `--cache`: the same on any number of workers and after an interruption, wherever images are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.commands import Finished, run_script
from tests.end_to_end.runs import flags_of, metrics_of

NUM_INSTANCES, STEPS = 22, 6
RECIPE = {
    "augmentation": "simclr",
    "batch_size": 8,
    "micro_batch": 2,
    "hard_negatives": 2,
    "learning_rate": 0.001,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """Smooth photographs, five times as large as they are to be kept."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(NUM_INSTANCES):
        coarse = Image.fromarray(random.integers(0, 256, [4, 5, 3], np.uint8))
        coarse.resize([120 + index, 80], Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")
    return f"folder:{folder}"


def pretrained(dataset: str, workdir: Path, cache: object, workers: int = 1, **changes) -> Finished:
    flags = flags_of(workdir, **{**RECIPE, "dataset": dataset, "cache": cache, **changes})
    return run_script("pretrain", *flags, workers=workers)


def class_weights(workdir: Path) -> np.ndarray:
    return tf.train.load_checkpoint(str(workdir / "checkpoints")).get_tensor("classifier/rows")


@pytest.fixture(scope="module")
def whole_run(dataset, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finished = pretrained(dataset, workdir, "ram")
    assert finished.status == 0, finished.output
    assert f"--cache=ram: filled: {NUM_INSTANCES} of {NUM_INSTANCES} images" in finished.stderr
    return workdir


def test_an_interrupted_run_is_the_same_to_the_last_bit(dataset, whole_run, tmp_path):
    workdir, place = tmp_path / "run", tmp_path / "photos.cache"
    for cache, changes in ((place, {"max_steps": 4}), ("ram", {})):  # in the middle of the second epoch
        finished = pretrained(dataset, workdir, cache, **changes)
        assert finished.status == 0, finished.output
    np.testing.assert_array_equal(metrics_of(workdir)["loss"], metrics_of(whole_run)["loss"])
    np.testing.assert_array_equal(class_weights(workdir), class_weights(whole_run))

    finished = pretrained(dataset, workdir, "")
    assert finished.status == 2
    assert f"belongs to a run with --cache={place}, this one has --cache=: give the same" in finished.stderr


@pytest.mark.parametrize(("workers", "place"), [(2, "ram"), (3, "photos.cache")])
def test_workers_share_what_is_kept(dataset, whole_run, tmp_path, workers, place):
    cache = place if place == "ram" else tmp_path / place
    finished = pretrained(dataset, tmp_path / "run", cache, workers)
    assert finished.status == 0, finished.output
    (said,) = [line for line in finished.said_by(0) if "filled" in line]
    assert said.startswith(f"--cache={cache}: filled: {NUM_INSTANCES} of {NUM_INSTANCES} images")
    metrics, expected = metrics_of(tmp_path / "run"), metrics_of(whole_run)
    assert len(metrics["loss"]) == STEPS
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-4)


def test_other_images_are_refused(tmp_path):
    finished = pretrained("digits", tmp_path / "run", "ram", augmentation="digits")
    sentence = "--cache=ram: keeps images of a folder, wanted --dataset=folder:PATH, or no cache with --dataset=digits"
    assert (finished.status, finished.stderr) == (2, f"error: {sentence}\n")
    assert not (tmp_path / "run").exists()
