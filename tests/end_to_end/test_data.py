"""Runs on folders as they are: with bad files, with files that come and go, and from record shards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from tests.commands import run_script, snapshot
from tests.end_to_end.runs import TINY, flags_of, metrics_of
from tests.images import write_images
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
    names = said.rpartition(": ")[2].split(", ")
    assert len(names) == 11 and names[-1] == "…"


def test_files_that_come_and_go(tmp_path, capsys):
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(10)])
    config = config_of(tmp_path / "run", tmp_path / "photos", max_bad_fraction=0.0)
    instcls_tf.pretrain(config.replace(max_steps=1))
    os.remove(tmp_path / "photos" / "3.jpg")
    instcls_tf.pretrain(config.replace(max_steps=3))
    said = capsys.readouterr().err
    gone = "1 file(s) are gone (10.0%: is a disk not mounted?), their ids stay unused: '3.jpg'"
    assert f"warning: since the run began, {gone}" in said
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

    peer = tmp_path / "data_util.py"
    peer.write_text(PEER)
    command = ["benchmark", "input", dataset, "--image_size=20", "--seconds=0.5"]
    finished = run_script(*command, "--cache=ram", f"--simclr={peer}")
    assert finished.status == 0, finished.output
    result = json.loads(finished.stdout.splitlines()[-1])
    for name in (
        "images_per_second",
        "images_per_cpu_second",
        "decode_images_per_cpu_second",
        "ratio_to_decode",
        "cpu_ratio_of_cache",
    ):
        assert result[name] > 0
    ratio = result["images_per_cpu_second"] / result["simclr_images_per_cpu_second"]
    assert result["cpu_ratio_to_simclr"] == pytest.approx(ratio)
    peer.write_text("def preprocess_for_train(image, height, width):\n    return image\n")
    finished = run_script(*command, f"--simclr={peer}")
    wanted = "has no batch_random_blur, wanted tf2/data_util.py of google-research/simclr"
    assert (finished.status, finished.stderr) == (2, f"error: --simclr={peer}: {wanted}\n")
    finished = run_script("benchmark", "typo")
    assert finished.status == 2 and "wanted first what to measure, one of input" in finished.stderr


# Stands in for SimCLR's module, which is nobody's to copy: called in the same way.
PEER = """
import tensorflow as tf
FLAGS = None
def preprocess_for_train(image, height, width):
    assert image.dtype == tf.float32 and FLAGS.color_jitter_strength == 1.0
    return tf.image.resize(image, [height, width])
def batch_random_blur(images_list, height, width):
    assert len(images_list) == 2
    return [tf.ensure_shape(images, [None, height, width, 3]) for images in images_list]
"""


def test_a_workdir_inside_the_dataset_is_no_part_of_it(tmp_path, capsys):
    photos = tmp_path / "photos"
    write_images(photos, [f"{index}.jpg" for index in range(10)] + [".thumbnails/0.jpg"])
    config = config_of(photos / "run", photos)
    instcls_tf.pretrain(config.replace(max_steps=1))
    assert "1 folder that programs made ('.thumbnails') was not looked into" in capsys.readouterr().err
    write_images(photos / "run", ["similarity.png", "gallery/0.png"])
    metrics = instcls_tf.pretrain(config.replace(max_steps=2))
    assert metrics["step"] == 2
    assert f"folder:{photos}: 1 folder that holds a run ('run') was not looked into" in capsys.readouterr().err


def test_a_workdir_with_images_of_the_dataset_is_refused(tmp_path):
    photos = tmp_path / "photos"
    write_images(photos, [f"{name}/{index}.jpg" for name in ("cat", "dog") for index in range(5)])
    before = snapshot(tmp_path)
    (tmp_path / "link").symlink_to(photos / "cat")
    for workdir in (photos, photos / "cat", tmp_path / "link"):
        with pytest.raises(UserError) as refusal:
            instcls_tf.pretrain(config_of(workdir, photos))
        assert str(refusal.value) == (
            f"--workdir={workdir}: holds images of --dataset=folder:{photos}, wanted a folder without any, inside the"
            f" dataset's or elsewhere"
        )
    (tmp_path / "link").unlink()
    assert {name: hashed for name, hashed in snapshot(tmp_path).items() if name != "."} == {
        name: hashed for name, hashed in before.items() if name != "."
    }


def test_a_folder_whose_name_is_no_text(tmp_path):
    photos = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    folders = [f"{split}/{label}" for split in ("train", "test") for label in "ab"]
    write_images(Path(photos), [f"{folder}/{index}.jpg" for folder in folders for index in range(4)])
    instcls_tf.pretrain(config_of(tmp_path / "run", photos, max_steps=1))
    settings = {**SMALL, "dataset": f"folder:{photos}", "max_steps": 2}
    finished = run_script("pretrain", *flags_of(tmp_path / "run", **settings), workers=2)
    assert finished.status == 0, finished.output
    assert f"continuing {tmp_path}/run from step 1" in finished.stderr
    assert b"--dataset=folder:" + os.fsencode(photos) + b"\n" in (tmp_path / "run" / "run.flags").read_bytes()
    of_run, name = f"--workdir={tmp_path / 'run'}", os.fsdecode(b"\xe9t\xe9")
    for command, *flags in [
        ("extract", of_run, f"--output={tmp_path / 'features.npz'}"),
        ("knn_eval", of_run),
        ("compare", f"--runs={name}={tmp_path / 'run'}", f"--output={tmp_path / 'results'}"),
    ]:
        finished = run_script(command, *flags)
        assert finished.status == 0 and "warning" not in finished.stderr, finished.output
        answer = json.loads(finished.stdout.splitlines()[-1])
        assert answer[name]["top1"] >= 0 if command == "compare" else answer["dataset"] == f"folder:{photos}"
    assert f"| {name!r} |" in (tmp_path / "results" / "comparison.md").read_text()


def test_a_dataset_of_two_lines_is_refused_before_anything_is_written(tmp_path):
    photos = tmp_path / "two\nlines"
    write_images(photos, [f"{index}.jpg" for index in range(10)])
    with pytest.raises(UserError) as refusal:
        instcls_tf.pretrain(config_of(tmp_path / "run", photos))
    assert str(refusal.value) == f"--dataset={f'folder:{photos}'!r}: must be one line"
    assert not (tmp_path / "run").exists()


def test_a_run_and_its_evaluation_read_images_by_the_same_recipe(tmp_path):
    """Half transparent images: what an evaluation sees depends on the run's background."""
    for split in ("train", "test"):
        for index in range(8):
            path = tmp_path / "photos" / split / ("a" if index % 2 else "b") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (20, 20), (60 * (index % 2), 30 * (index % 4), 0, 128)).save(path)
    (tmp_path / "photos" / "train" / "a" / "raw.heic").write_bytes(b"")
    seen = {}
    for background in ("white", "black"):
        config = config_of(tmp_path / background, tmp_path / "photos", background=background, max_steps=0)
        finished = run_script("pretrain", *config.as_flags().splitlines()[:-1])  # without the mark at the end
        assert finished.status == 0, finished.output
        assert finished.stderr.count("4 of 8 images are copies of others, byte for byte") == 1
        finished = run_script("extract", f"--workdir={config.workdir}", f"--output={tmp_path / background}.npz")
        assert finished.status == 0, finished.output
        remark = "1 of 9 images (.heic) is not read by this installation: convert it to JPEG"
        assert finished.stderr.count(f"warning: folder:{tmp_path / 'photos'}: {remark}") == 1
        seen[background] = np.load(f"{tmp_path / background}.npz")["backbone"]
    assert np.abs(seen["white"] - seen["black"]).max() > 0.1
    # A run that began before there was a choice is read as it is now.
    flags = tmp_path / "white" / "run.flags"
    kept = [line for line in flags.read_text().splitlines() if "background" not in line and "max_pixels" not in line]
    flags.write_text("\n".join(kept))
    finished = run_script("extract", f"--workdir={tmp_path / 'white'}", f"--output={tmp_path / 'again'}.npz")
    assert finished.status == 0, finished.output
    np.testing.assert_array_equal(np.load(f"{tmp_path / 'again'}.npz")["backbone"], seen["white"])
