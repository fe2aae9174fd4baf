"""The same flags give the same run on 1, 2 and 3 workers: fifty steps of the paper's recipe, with all that it has.

997 instances divide by neither 2 nor 3; a batch has BN groups of 16, 16, 16 and 10, the last one of an epoch a single
group of 11, for which one worker is enough. Prior, smoothing and learning rate are the paper's: the fifty steps lie
in the warm-up, as the first 3,000 of the paper do. At higher rates, runs that differ in the last bit of a sum part
after some tens of steps, on one worker as well.

All begin from one prior: where two classes are nearly as hard, the last bit decides which of them an image's list has,
and one such image moves the loss of its step by 2e-5. (In `test_pretrain` each run takes its own.)
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

import instcls_tf
from instcls_tf.config import PretrainConfig
from tests.commands import run_script
from tests.end_to_end.runs import metrics_of
from tests.reference import relative_error

NUM_INSTANCES, STEPS = 997, 50
RECIPE = {
    "augmentation": "digits",
    "image_size": 32,
    "encoder": "resnet10",
    "width_multiplier": 0.25,
    "stem": "small",
    "batch_size": 58,
    "micro_batch": 16,
    "epochs": 100,
    "hard_negatives": 10,
    "log_every": 1,
    "gauge_every": 0,
    "report": False,
    "checkpoint_every": 0,
    "max_steps": STEPS,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("digits")
    for index, image in enumerate(load_digits().images[:NUM_INSTANCES]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{index}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def runs_of_one(dataset, tmp_path_factory):
    """A run after its prior, and when it is done."""
    begun, done = (tmp_path_factory.mktemp("one") / name for name in ("begun", "done"))
    config = PretrainConfig(**RECIPE, dataset=dataset, workdir=str(done))
    instcls_tf.pretrain(config.replace(max_steps=0))
    shutil.copytree(done, begun)
    instcls_tf.pretrain(config)
    return begun, done


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_train_as_one_does(dataset, runs_of_one, tmp_path, workers):
    begun, done = runs_of_one
    shutil.copytree(begun, tmp_path / "run")
    flags = {**RECIPE, "dataset": dataset, "workdir": tmp_path / "run"}
    finished = run_script("pretrain", *(f"--{name}={value}" for name, value in flags.items()), workers=workers)
    assert finished.status == 0, finished.output
    expected, metrics = metrics_of(done), metrics_of(tmp_path / "run")
    assert len(metrics["loss"]) == STEPS
    np.testing.assert_allclose(metrics["loss"][:20], expected["loss"][:20], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-4)

    rows, expected_rows = (
        tf.train.load_checkpoint(str(folder / "checkpoints")).get_tensor("classifier/rows")
        for folder in (tmp_path / "run", done)
    )
    assert relative_error(rows, expected_rows) < 1e-4
