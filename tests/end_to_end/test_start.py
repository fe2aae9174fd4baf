"""A run from given weights: its warnings, gauges and table; and that it goes on without the file it started from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import instcls_tf
from instcls_tf.data.sources import open_source
from instcls_tf.encoder.networks import build_encoder
from instcls_tf.errors import UserError
from instcls_tf.export.subject import subject_of_run
from instcls_tf.initial.arrays import read_arrays
from instcls_tf.initial.start import initialize_encoder
from tests.commands import Finished, run_script
from tests.end_to_end.runs import flags_of
from tests.images import write_images
from tests.torch_layout import random_state_dict

# Two epochs of one step, for 40 of the digits' scans.
CHANGES = {
    "width_multiplier": 0.125,
    "encoder": "resnet18",
    "batch_size": 64,
    "micro_batch": 64,
    "epochs": 2,
    "hard_negatives": 5,
    "gauge_every": 1,
    "report": True,
}
NUM_IMAGES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images in two classes, without a test split, and weights by torchvision's names."""
    folder = tmp_path_factory.mktemp("start")
    write_images(folder / "images" / "train", [f"{'ab'[number % 2]}/{number:02d}.png" for number in range(NUM_IMAGES)])
    np.savez(folder / "weights.npz", **random_state_dict("resnet18", 8, 3))
    return folder


@pytest.fixture(scope="module")
def parts(folder) -> list[Finished]:
    """The run until its first step, and, when its weights are gone, to its end."""
    flags = flags_of(folder / "run", dataset=f"folder:{folder / 'images'}", init=folder / "weights.npz", **CHANGES)
    first = run_script("pretrain", *flags, "--max_steps=1")
    (folder / "weights.npz").rename(folder / "elsewhere.npz")
    return [first, run_script("pretrain", *flags)]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_start_says_what_it_is(folder, parts):
    assert parts[0].status == 0, parts[0].output
    said = parts[0].stderr
    assert f"--init={folder / 'weights.npz'}: left out: fc\n" in said
    assert f"--init={folder / 'weights.npz'}: the projection head starts from random weights\n" in said
    assert said.count("the prior from --init: views have cosine ") == 1
    assert f"warning: --batch_size=64 is more than the {NUM_IMAGES} images: an epoch is a single step; take" in said
    assert "warning: --width_multiplier=0.125 without a GPU: " in said
    assert said.count("warning: ") == 2
    assert "raw pixels" not in said  # the run is not finished
    # The prior moves BN's statistics to those of the images, and nothing else.
    kept, given = (read_arrays(str(folder / name)) for name in ("run/start.safetensors", "elsewhere.npz"))
    for name in ("conv1.weight", "layer4.1.bn2.weight"):
        np.testing.assert_array_equal(kept[name], given[name])
    assert np.abs(kept["bn1.running_mean"] - given["bn1.running_mean"]).max() > 1e-3


def test_a_run_goes_on_without_its_file_and_ends_with_a_table(folder, parts):
    assert parts[1].status == 0, parts[1].output
    assert "warning: --batch" not in parts[1].stderr
    assert "the prior from --init" not in parts[1].stderr
    table = [line for line in parts[1].stderr.splitlines() if line.startswith(("raw pixels", "starting", "this run"))]
    assert [line.split("  ")[0] for line in table] == [
        "raw pixels (16 px)", "starting weights (--init)", "this run (step 2)",
    ]  # fmt: skip
    found = json.loads((folder / "run" / "report.json").read_text())
    assert (found["train_examples"], found["test_examples"]) == (32, 8)
    assert all(set(found[name]) >= {"top1", "nearest_top1", "rank_me"} for name in ("pixels", "start", "run"))
    assert found["test_split"] == "every fifth training image"
    # The two parts looked at the same images and views, and so does the report.
    first, second = lines(folder)
    for name in ("gauge_agreement", "rank_me"):
        assert first[f"{name}_start"] == second[f"{name}_start"] == pytest.approx(found["start"][name], rel=1e-3)
        assert second[name] == pytest.approx(found["run"][name], rel=1e-3)
        assert first[name] != second[name]


def test_the_command_answers_the_same(folder, parts):
    """Also where the labels are given as those of images elsewhere."""
    of_run = json.loads((folder / "run" / "report.json").read_text())
    finished = run_script("report", f"--workdir={folder / 'run'}", f"--dataset=folder:{folder / 'images'}")
    assert finished.status == 0, finished.output
    *table, last = finished.stdout.splitlines()
    found = json.loads(last)
    assert found == json.loads((folder / "run" / "report.json").read_text())
    assert found["labelled_dataset"] == f"folder:{folder / 'images'}" and not of_run["labelled_dataset"]
    same = ("train_examples", "test_examples", "test_split", "step", "gauge_images")
    assert [found[name] for name in same] == [of_run[name] for name in same]
    assert table[0].split() == ["1-NN", "20-NN", "views", "agree", "RankMe"]
    assert table[-1].startswith("This run is ") and table[-1].endswith(f"among 32 of folder:{folder / 'images'}).")


def test_features_come_in_the_order_of_paths(folder, parts):
    paths = [folder / "images" / "train" / name for name in ("b/03.png", "a/00.png", "b/03.png")]
    found = instcls_tf.embed(paths, workdir=str(folder / "run"))
    assert found.shape == (3, 64)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5)
    source = open_source(f"folder:{folder / 'images'}")
    backbone = instcls_tf.load_encoder(str(folder / "run")).get_layer("backbone")
    from instcls_tf.evaluation.features import extract

    all_of_them = extract(backbone, source, image_size=16, center_crop_fraction=0.875).vectors
    np.testing.assert_allclose(found[1], all_of_them[0], rtol=1e-4, atol=1e-5)
    assert instcls_tf.embed(paths, workdir=str(folder / "run"), features="projection").shape == (3, 128)
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"embed: cannot read 2 of 3 files: .*broken.jpg: .*; .*nowhere.png: "):
        instcls_tf.embed([paths[0], folder / "broken.jpg", folder / "nowhere.png"], workdir=str(folder / "run"))


def test_a_run_is_a_start_itself(folder, parts):
    """And its model card tells of its own start without the folders of this machine."""
    encoder = build_encoder(encoder="resnet18", width_multiplier=0.125, stem="small", seed=9)
    assert initialize_encoder(encoder, str(folder / "run")) == ["its projection head is taken as well"]
    for mine, theirs in zip(encoder.variables, instcls_tf.load_encoder(str(folder / "run")).variables):
        np.testing.assert_array_equal(mine, theirs)
    assert subject_of_run(str(folder / "run")).origin["recipe"]["init"] == "weights.npz"
