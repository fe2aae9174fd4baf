"""Runs on folders as they are: with bad files, with files that come and go, and from record shards."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tensorflow as tf

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from tests.commands import run_script
from tests.end_to_end.runs import TINY, flags_of, metrics_of, write_images
from tests.single.test_folder import plant

SMALL = {"augmentation": "simclr", "batch_size": 8, "micro_batch": 2, "hard_negatives": 2, "learning_rate": 0.01}


def config_of(workdir, folder, **changes) -> PretrainConfig:
    return PretrainConfig(**{**TINY, **SMALL, "dataset": f"folder:{folder}", "workdir": str(workdir), **changes})


def listed(workdir) -> set[str]:
    lines = (workdir / "bad_files.txt").read_text(errors="surrogateescape").splitlines()
    return {os.path.basename(line.split("\t")[0]) for line in lines}


def test_a_tree_of_problems_runs_to_its_end_on_two_workers(tmp_path):
    bad = plant(tmp_path / "tree")
    changes = {**SMALL, "dataset": f"folder:{tmp_path / 'tree'}", "max_bad_fraction": 0.5}
    workdir = tmp_path / "run"
    finished = run_script("pretrain", *flags_of(workdir, **changes), workers=2)
    assert finished.status == 0, finished.output
    assert listed(workdir) == bad
    assert np.isfinite(metrics_of(workdir)["loss"]).all()
    rows = tf.train.load_checkpoint(str(workdir / "checkpoints")).get_tensor("classifier/rows")
    assert np.isfinite(rows).all() and np.linalg.norm(rows, axis=1).min() > 0.1, "also those of unused ids"

    finished = run_script("pretrain", *flags_of(tmp_path / "strict", **{**changes, "max_bad_fraction": 0.1}), workers=2)
    assert finished.status == 2, finished.output
    (said,) = [line for rank in range(2) for line in finished.said_by(rank) if line.startswith("error")]
    assert said.startswith(f"error: --max_bad_fraction=0.1: {len(bad)} of {len(bad) + 17} images cannot be read, see ")
    assert len(said.rpartition(": ")[2].split(", ")) == 10


def test_files_that_come_and_go(tmp_path, capsys):
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(10)])
    config = config_of(tmp_path / "run", tmp_path / "photos", max_bad_fraction=0.2)
    instcls_tf.pretrain(config.replace(max_steps=1))
    os.remove(tmp_path / "photos" / "3.jpg")
    instcls_tf.pretrain(config.replace(max_steps=3))
    assert "since the run began, 1 file(s) are gone, their ids stay unused: '3.jpg'" in capsys.readouterr().err
    assert listed(tmp_path / "run") == {"3.jpg"}
    write_images(tmp_path / "photos", ["a new one.jpg"])
    with pytest.raises(UserError) as refusal:
        instcls_tf.pretrain(config)
    assert "'a new one.jpg' was added after the run in" in str(refusal.value)
    assert "began with 10 images, now there are 11" in str(refusal.value)


def test_records_views_and_speed_from_the_command_line(tmp_path):
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(12)])
    dataset, output = f"--dataset=folder:{tmp_path / 'photos'}", tmp_path / "records"
    finished = run_script("prepare", dataset, f"--output={output}")
    assert json.loads(finished.stdout)["images"] == {"train": 12}, finished.output
    changes = {**SMALL, "dataset": f"records:{output}", "max_steps": 3}
    metrics = instcls_tf.pretrain(PretrainConfig(**{**TINY, **changes, "workdir": str(tmp_path / "run")}))
    assert np.isfinite(metrics["loss"]) and not (tmp_path / "run" / "bad_files.txt").exists()

    picture = tmp_path / "views.png"
    finished = run_script("show_views", dataset, "--image_size=20", "--images=3", "--columns=5", f"--output={picture}")
    assert finished.status == 0, finished.output
    grid = tf.io.decode_png(picture.read_bytes())
    assert grid.shape == (3 * 24, 6 * 24, 3)

    finished = run_script("benchmark", "input", dataset, "--image_size=20", "--seconds=0.5")
    assert finished.status == 0, finished.output
    result = json.loads(finished.stdout.splitlines()[-1])
    for name in ("images_per_second", "images_per_cpu_second", "decode_images_per_cpu_second", "ratio_to_simclr"):
        assert result[name] > 0
    finished = run_script("benchmark", "typo")
    assert finished.status == 2 and "wanted first what to measure, one of input" in finished.stderr
