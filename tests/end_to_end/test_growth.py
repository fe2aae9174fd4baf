"""A run goes on with a set that has grown and shrunk, on another number of workers, and says what it took over."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.data import contents, manifest
from instcls_tf.data.sources import open_source
from instcls_tf.run import checkpoint
from instcls_tf.run.encoder import load_encoder
from tests import reference
from tests.commands import run_script, snapshot
from tests.end_to_end.conftest import launched
from tests.end_to_end.runs import flags_of

RECIPE = {
    "image_size": 8,
    "width_multiplier": 0.125,
    "embedding_size": 16,
    "batch_size": 30,
    "micro_batch": 15,
    "epochs": 3,
    "hard_negatives": 5,
}
BEFORE, GONE, ADDED = 91, range(0, 40, 2), range(200, 230)


def write_scans(folder: Path, ids, prefix: str) -> None:
    folder.mkdir(parents=True)
    scans = open_source("digits").images
    for index in ids:
        Image.fromarray(scans[index]).save(folder / f"{prefix}{index:04d}.png")


@pytest.fixture(scope="module")
def runs(made_once):
    """A run on 91 scans, and one that goes on with 71 of them, which were moved and renamed, and 30 others."""

    def make(folder: Path) -> Path:
        write_scans(folder / "before", range(BEFORE), "scan")
        finished = run_script("pretrain", *flags_of(folder / "first", dataset=f"folder:{folder / 'before'}", **RECIPE))
        assert finished.status == 0, finished.output
        kept = [index for index in range(BEFORE) if index not in GONE]
        write_scans(folder / "now" / "old", kept, "renamed")
        write_scans(folder / "now" / "more", ADDED, "scan")
        shutil.move(folder / "before", folder / "elsewhere")  # it is not needed any more
        past = {"dataset": f"folder:{folder / 'now'}", "extend_from": folder / "first", **RECIPE}
        said = launched(folder / "second", 2, max_steps=0, **past).finished.output
        (folder / "said.txt").write_text(said)
        return folder

    return made_once("growth", make)


def state_of(workdir: Path) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """The number on each scan's file, in the order of ids; weights and momentum of their classes."""
    paths, _ = manifest.read(str(workdir / "manifest.tsv"))
    reader = tf.train.load_checkpoint(checkpoint.newest(str(workdir)))
    numbers = {int(Path(path).stem[-4:]): place for place, path in enumerate(paths)}
    return numbers, reader.get_tensor("classifier/rows"), reader.get_tensor("classifier/momentum")


def test_known_images_keep_weight_and_momentum_bitwise(runs):
    before, weights_before, momentum_before = state_of(runs / "first")
    now, weights, momentum = state_of(runs / "second")
    known = sorted(before.keys() & now.keys())
    assert len(known) == 71 and len(now) == 101
    old, new = [before[i] for i in known], [now[i] for i in known]
    assert old != new
    np.testing.assert_array_equal(weights[new], weights_before[old])
    np.testing.assert_array_equal(momentum[new], momentum_before[old])
    assert np.abs(momentum[new]).max() > 0
    assert "71 images are known and keep weight and momentum, 30 are new, 20 of its 91 are gone" in (
        runs / "said.txt"
    ).read_text().replace("\n", " ")


def test_the_encoder_and_its_momentum_are_the_same(runs):
    before, now = (tf.train.load_checkpoint(checkpoint.newest(str(runs / name))) for name in ("first", "second"))
    names = [name for name in before.get_variable_to_shape_map() if name.startswith(("encoder/", "optimizer/"))]
    steps = [name for name in names if "iterations" in name]
    assert len(names) > 100 and len(steps) == 1
    for name in set(names) - set(steps):
        np.testing.assert_array_equal(before.get_tensor(name), now.get_tensor(name), err_msg=name)
    assert (before.get_tensor(steps[0]), now.get_tensor(steps[0])) == (12, 0)


def test_new_images_get_the_projection_of_the_trained_network(runs):
    """Less what the others' projections have in common and their weights have not."""
    now, weights, momentum = state_of(runs / "second")
    encoder = load_encoder(str(runs / "second"))
    scans = open_source("digits").images.astype(np.float32)

    def directions(vectors) -> np.ndarray:
        vectors = np.asarray(vectors, np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def projections(ids) -> np.ndarray:
        return directions(encoder(tf.constant(scans[ids])))

    known, new = [i for i in now if i < BEFORE], list(ADDED)
    shift = (directions(weights[[now[i] for i in known]]) - projections(known)).mean(axis=0)
    expected = directions(projections(new) + shift)
    np.testing.assert_allclose(weights[[now[i] for i in new]], expected, atol=1e-5)
    assert not momentum[[now[i] for i in new]].any()
    assert np.linalg.norm(shift) > 0.1


def test_the_loss_of_kept_images_continues_where_it_was(runs):
    """What the earlier run gave for them and what this one begins with differ by the classes that came and went."""
    numbers, weights_before, _ = state_of(runs / "first")
    now, weights, _ = state_of(runs / "second")
    known = sorted(numbers.keys() & now.keys())
    losses = []
    for name, places, rows in (("first", numbers, weights_before), ("second", now, weights)):
        encoder = load_encoder(str(runs / name))
        embeddings = encoder(tf.constant(open_source("digits").images[known], tf.float32)).numpy()
        dense = reference.DenseClassifier(rows, temperature=0.15, smoothing=0.0, smoothing_loss="marginal")
        loss, _, _ = dense.step(embeddings, np.array([places[i] for i in known]), None, 0.0)
        losses.append(loss)
    assert losses[1] == pytest.approx(losses[0] + np.log(101 / 91), abs=0.05)


def test_it_goes_on_without_the_earlier_run(runs, tmp_path):
    shutil.copytree(runs / "second", tmp_path / "second")
    dataset = f"folder:{runs / 'now'}"
    flags = {**RECIPE, "dataset": dataset, "extend_from": runs / "first"}
    shutil.move(runs / "first", runs / "hidden")
    try:
        finished = run_script("pretrain", *flags_of(tmp_path / "second", max_steps=1, **flags))
    finally:
        shutil.move(runs / "hidden", runs / "first")
    assert finished.status == 0, finished.output
    assert "from step 0" not in finished.output


def test_a_run_whose_hashes_are_lost_reads_its_images_again(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "first")
    (tmp_path / "first" / "contents.npy").unlink()
    flags = {**RECIPE, "dataset": f"folder:{runs / 'now'}", "extend_from": tmp_path / "first"}
    finished = run_script("pretrain", *flags_of(tmp_path / "second", max_steps=0, **flags))
    assert finished.status == 2
    assert "its images are not known any more" in finished.stderr and "no such folder" in finished.stderr
    shutil.copytree(runs / "elsewhere", runs / "before")
    # Added to that folder since: it has no class in the earlier run, and is new.
    shutil.copy(next((runs / "now" / "more").iterdir()), runs / "before" / "since.png")
    try:
        finished = run_script("pretrain", *flags_of(tmp_path / "second", max_steps=0, **flags))
    finally:
        shutil.rmtree(runs / "before")
    assert finished.status == 0, finished.output
    # New images' projections are rounded otherwise on one worker than on two.
    np.testing.assert_allclose(state_of(tmp_path / "second")[1], state_of(runs / "second")[1], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embedding_size": 32}, "is a run with --embedding_size=16, this one has --embedding_size=32"),
        ({"method": "simclr", "hard_negatives": 100}, "is of --method=instance"),
        ({"dataset": "digits"}, "knows none of the 1437 images of --dataset=digits"),
        ({"extend_from": "/nowhere"}, "--extend_from=/nowhere: holds no run"),
        ({"contrast_epochs": 1}, "--contrast_epochs=1 would take them from the network again"),
        ({"prior_every": 2}, "--prior_every=2 would take them from the network again"),
    ],
)
def test_what_does_not_fit_is_refused(runs, tmp_path, changes, sentence):
    flags = {**RECIPE, "dataset": f"folder:{runs / 'now'}", "extend_from": runs / "first", **changes}
    before = snapshot(runs / "first")
    finished = run_script("pretrain", *flags_of(tmp_path / "second", **flags))
    assert (finished.status, sentence in finished.stderr) == (2, True), finished.output
    assert not (tmp_path / "second").exists()
    assert snapshot(runs / "first") == before


def test_hashes_of_another_number_of_images_are_refused(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "first")
    contents.write(str(tmp_path / "first" / "contents.npy"), contents.read(str(runs / "first" / "contents.npy"))[:90])
    flags = {**RECIPE, "dataset": f"folder:{runs / 'now'}", "extend_from": tmp_path / "first"}
    finished = run_script("pretrain", *flags_of(tmp_path / "second", **flags))
    assert finished.status == 2
    assert "90 images are there for the 91 classes of" in finished.stderr
    assert not (tmp_path / "second").exists()


def test_a_run_without_class_weights_is_refused(tmp_path):
    """Within `--contrast_epochs` they are 0, and would stay so."""
    write_scans(tmp_path / "photos", range(60), "scan")
    recipe = {**RECIPE, "dataset": f"folder:{tmp_path / 'photos'}"}
    early = {"contrast_epochs": 2, "max_steps": 3}
    finished = run_script("pretrain", *flags_of(tmp_path / "first", **early, **recipe))
    assert finished.status == 0, finished.output
    finished = run_script("pretrain", *flags_of(tmp_path / "second", extend_from=tmp_path / "first", **recipe))
    assert finished.status == 2, finished.output
    assert f"--extend_from={tmp_path / 'first'}: its classes have no weights yet" in finished.stderr
    assert not (tmp_path / "second").exists()


def test_a_run_does_not_grow_into_itself(runs):
    flags = {**RECIPE, "dataset": f"folder:{runs / 'now'}", "extend_from": runs / "first"}
    finished = run_script("pretrain", *flags_of(runs / "first", **flags))
    assert finished.status == 2
    assert "is --workdir itself" in finished.stderr
