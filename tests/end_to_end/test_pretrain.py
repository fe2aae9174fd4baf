"""Pretraining as a user runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

import instcls_tf
import instcls_tf.checkpoint
from instcls_tf import thermometer
from instcls_tf.config import load_run
from tests.commands import run_script
from tests.end_to_end.tiny import STEPS, STOPPED_AT, tiny_config, tiny_flags


def _metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(tiny_run):
    workdir, _ = tiny_run
    assert load_run(str(workdir)) == tiny_config(workdir, max_steps=STOPPED_AT)
    assert list(workdir.glob("tensorboard/events*"))
    encoder = instcls_tf.load_encoder(str(workdir))
    assert encoder(np.zeros([2, 16, 16, 3], np.uint8)).shape == [2, 32]
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints"))
    assert reader.get_variable_to_shape_map()["classifier/rows"] == [1437, 32]


def test_metrics_continue_over_the_interruption_and_another_number_of_workers(tiny_run):
    metrics = _metrics(tiny_run[0])
    assert [line["step"] for line in metrics] == list(range(2, STEPS + 1, 2))
    for name in ("epoch", "loss", "instance_top1", "learning_rate", "images_per_second", "data_wait_fraction"):
        assert np.isfinite([line[name] for line in metrics]).all(), name
    losses = [line["loss"] for line in metrics]
    assert abs(losses[0] - thermometer.expected_start(1437, 32, 0.15)) < 0.7
    # The second part starts where the first one stopped, not at the beginning.
    assert losses[STOPPED_AT // 2] < losses[0] - 0.05
    assert metrics[-1]["loss_floor"] < losses[-1] < losses[0]


def test_only_the_first_worker_speaks(tiny_run):
    first, second = tiny_run[1]
    assert "[1,0]<stderr>:done:" in first and "[1,1]<stderr>" not in first
    assert "starts near 7.6" in first and "12/12" in second and "continuing" in second


def test_a_finished_run_started_again_does_nothing(tiny_run):
    workdir, _ = tiny_run
    before = (workdir / "metrics.jsonl").read_text()
    instcls_tf.pretrain(tiny_config(workdir))
    assert (workdir / "metrics.jsonl").read_text() == before


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path):
    straight = instcls_tf.pretrain(tiny_config(tmp_path / "straight"))
    instcls_tf.pretrain(tiny_config(tmp_path / "stopped", max_steps=STOPPED_AT))
    resumed = instcls_tf.pretrain(tiny_config(tmp_path / "stopped"))
    assert resumed["loss"] == pytest.approx(straight["loss"], rel=1e-4)
    weights = [instcls_tf.load_encoder(str(tmp_path / name)).get_weights() for name in ("straight", "stopped")]
    for one, other in zip(*weights):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16"},
        {"smoothing": 0.0, "sampled_classes": 512},
        {"smoothing_loss": "cross_entropy"},
        {"classifier_init": "raw_batch_bn", "mlp_head": False},
        {"classifier_init": "raw_fixed_bn", "views": 1},
        {"temperature": 0.01, "smoothing": 0.0, "classifier_init": "random"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_variant_of_the_recipe_learns_something(changes, tmp_path):
    config = tiny_config(tmp_path / "run", max_steps=4, width_multiplier=0.0625, log_every=1, **changes)
    metrics = instcls_tf.pretrain(config)
    assert metrics["step"] == 4 and np.isfinite(metrics["loss"])
    before = instcls_tf.checkpoint.make_encoder(config).trainable_variables
    after = instcls_tf.load_encoder(config.workdir).trainable_variables
    assert any(np.abs(one - other).max() > 1e-6 for one, other in zip(before, after))


def test_zero_steps_save_the_initialised_run(tmp_path):
    assert instcls_tf.pretrain(tiny_config(tmp_path / "run", max_steps=0)) == {}
    reader = tf.train.load_checkpoint(str(tmp_path / "run" / "checkpoints"))
    lengths = np.linalg.norm(reader.get_tensor("classifier/rows"), axis=1)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)


def test_nine_images_on_two_workers_with_a_last_batch_of_one(tmp_path):
    random = np.random.default_rng(0)
    for index in range(9):
        image = random.integers(0, 255, [20 + index, 24, 3], np.uint8)
        path = tmp_path / "photos" / f"äb {index % 2}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(image).numpy())
    flags = tiny_flags(
        tmp_path / "run", dataset=f"folder:{tmp_path / 'photos'}", batch_size=4, hard_negatives=3, augmentation="simclr"
    )
    status, output = run_script("pretrain", *flags, "--log_every=1", num_workers=2)
    assert status == 0, output[-4000:]
    metrics = _metrics(tmp_path / "run")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert np.isfinite([line["loss"] for line in metrics]).all()
