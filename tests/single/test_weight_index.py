"""The class weights of a checkpoint as an index, against all cosines at once."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.table import Table
from instcls_tf.config import PretrainConfig
from instcls_tf.data.names import names_of
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation import weight_index
from instcls_tf.evaluation.similarity import retrieval_top1
from instcls_tf.evaluation.weight_index import nearest_others, read_weights, weight_neighbours_of_run
from instcls_tf.report.similarity import draw_index
from instcls_tf.run import checkpoint
from instcls_tf.run.parts import Slices
from instcls_tf.run.workdir import run_flags_path
from tests import reference
from tests.images import write_images

NUM_CLASSES = 23


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(4).normal(size=[NUM_CLASSES, 5]).astype(np.float32)


def write_checkpoint(folder, weights: np.ndarray) -> str:
    parts = {"classifier/rows": Slices(tf.Variable(weights), 0, len(weights))}
    return checkpoint.save(str(folder), 1, tf.train.Checkpoint(), parts)


def test_weights_are_read_in_slices(tmp_path, weights):
    prefix = write_checkpoint(tmp_path, weights)
    np.testing.assert_array_equal(read_weights(prefix, 3, 11), weights[3:11])
    assert weight_index.num_classes(prefix) == NUM_CLASSES


def test_weights_kept_in_bfloat16(tmp_path, weights):
    halved = tf.cast(weights, tf.bfloat16)
    prefix = write_checkpoint(tmp_path, halved)
    read = read_weights(prefix, 3, 11)
    assert read.dtype == tf.float32
    np.testing.assert_array_equal(read, tf.cast(halved[3:11], tf.float32))


def test_weights_kept_in_int8(tmp_path, weights):
    table = Table(tf.Variable(tf.zeros(weights.shape, tf.int8)), tf.Variable(tf.zeros([NUM_CLASSES])))
    table.write(tf.range(NUM_CLASSES), tf.constant(weights))
    parts = {"classifier/rows": Slices(table.values, 0, NUM_CLASSES)}
    parts["classifier/rows_scales"] = Slices(table.scales, 0, NUM_CLASSES)
    prefix = checkpoint.save(str(tmp_path), 1, tf.train.Checkpoint(), parts)
    read = read_weights(prefix, 3, 11)
    np.testing.assert_array_equal(read, table.read(tf.range(3, 11)))
    np.testing.assert_allclose(read, weights[3:11], atol=2.0**-6)


@pytest.mark.parametrize("block", [1, 4, 22, 23, 100])
def test_equals_all_cosines(tmp_path, weights, monkeypatch, block):
    monkeypatch.setattr(weight_index, "_BLOCK_CLASSES", block)
    prefix = write_checkpoint(tmp_path, weights)
    cosines, places = nearest_others(prefix)
    dense = reference.normalize(weights.astype(np.float64))
    dense = dense @ dense.T
    np.fill_diagonal(dense, -np.inf)
    np.testing.assert_array_equal(places, dense.argmax(axis=1))
    np.testing.assert_allclose(cosines, dense.max(axis=1), atol=1e-6)


@pytest.fixture
def run(tmp_path, weights):
    """A run on 23 images of which 5 and 17 are alike, and 9 is like no other."""
    weights[:, 0] += 3
    weights[17] = weights[5] * 2 + 1e-4
    weights[9] = [-1, 0, 0, 0, 0]
    write_images(tmp_path / "images", [f"{index:02d}.png" for index in range(NUM_CLASSES)])
    workdir = tmp_path / "run"
    write_checkpoint(workdir, weights)
    config = PretrainConfig(dataset=f"folder:{tmp_path / 'images'}")
    with open(run_flags_path(str(workdir)), "w") as file:
        file.write(config.as_flags())
    return workdir


def test_near_duplicates_and_outliers_are_named(run):
    index = weight_neighbours_of_run(str(run), None, threshold=0.999, listed=1)
    result = index.summary(1)
    assert result["examples"] == NUM_CLASSES
    pair = {"first": "05.png", "second": "17.png", "cosine": pytest.approx(1.0, abs=1e-3)}
    assert result["near_duplicates"] == {"pairs": 1, "listed": [pair]}
    assert [outlier["image"] for outlier in result["outliers"]] == ["09.png"]
    assert result["outliers"][0]["cosine"] < 0
    everything = weight_neighbours_of_run(str(run), None, threshold=-1.0, listed=3).summary(3)["near_duplicates"]
    assert everything["pairs"] > 10
    assert len(everything["listed"]) == 3
    assert everything["listed"][0] == pair
    draw_index(str(run / "x.png"), index)
    assert (run / "x.png").read_bytes().startswith(b"\x89PNG")


def test_images_of_records_have_the_names_of_their_files(run, tmp_path):
    """As `prepare` has kept them: 23 in another order."""
    prepare(f"folder:{tmp_path}/images", str(tmp_path / "records"), shard_megabytes=1)
    dataset = f"records:{tmp_path}/records"
    (run / "run.flags").write_text(PretrainConfig(dataset=dataset).as_flags())
    result = weight_neighbours_of_run(str(run), None, threshold=0.999, listed=1).summary(1)
    names = names_of(open_source(dataset), np.arange(NUM_CLASSES))
    (pair,) = result["near_duplicates"]["listed"]
    assert (pair["first"], pair["second"]) == (names[5], names[17])
    assert result["outliers"][0]["image"] == names[9] and names[9].endswith(".png")


def test_refusals(run, tmp_path):
    with pytest.raises(UserError, match=r"^--threshold=1\.5: must be a cosine, between -1 and 1$"):
        weight_neighbours_of_run(str(run), None, threshold=1.5, listed=1)
    with pytest.raises(UserError, match=r"^--listed=0: must be at least 1$"):
        weight_neighbours_of_run(str(run), None, threshold=0.5, listed=0)
    write_images(tmp_path / "images", ["new.png"])
    with pytest.raises(UserError, match=r"was made for 23 instances, the dataset has 24 now$"):
        weight_neighbours_of_run(str(run), None, threshold=0.5, listed=1)


def test_retrieval_counts_neighbours_of_the_same_category(weights):
    weights[1], weights[2], weights[3] = weights[0] * 3, weights[0], -weights[0]
    dense = reference.normalize(weights.astype(np.float64))
    dense = dense @ dense.T
    np.fill_diagonal(dense, -np.inf)
    labels = np.arange(NUM_CLASSES) % 2
    labels[:3] = 1  # rows 0 to 2 are exactly alike: whichever comes first is of their category
    expected = np.mean(labels[dense.argmax(axis=1)] == labels)
    assert retrieval_top1(weights, labels, 1000) == pytest.approx(expected)
    assert retrieval_top1(weights, np.zeros(NUM_CLASSES), 5) == 1.0
