"""The validation slice of train: stratified, fixed, and out of the reach of trials, for every kind of dataset."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.labelled import labels_of, open_splits
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source, open_training_source
from instcls_tf.errors import UserError
from instcls_tf.sweep.held_out import held_out_folder, refuse_other_images, stratified_slice, write_held_out
from tests.images import write_images

CLASSES = {"ant": 20, "bee": 7, "cat": 2}


def test_the_slice_is_stratified_and_fixed():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [100, 57, 2, 1]))
    held_out = stratified_slice(labels, 0.1, seed=5)
    assert [held_out[labels == label].sum() for label in range(4)] == [10, 6, 1, 0]
    np.testing.assert_array_equal(held_out, stratified_slice(labels, 0.1, seed=5))
    other = stratified_slice(labels, 0.1, seed=6)
    assert (held_out & other).sum() < held_out.sum() / 2
    assert [stratified_slice(labels, 0.99, 0)[labels == label].sum() for label in range(4)] == [99, 56, 1, 0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEG files of noise, all different, in three classes."""
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, [f"train/{name}/{i}.jpg" for name, count in CLASSES.items() for i in range(count)])
    write_images(folder, [f"test/{name}/{i}.jpg" for name in CLASSES for i in range(1)])
    return folder


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    labels = np.repeat(range(len(CLASSES)), list(CLASSES.values()))
    examples = [{"image": np.full([6, 5, 3], i, np.uint8), "label": label} for i, label in enumerate(labels)]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=list(CLASSES)),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny", "1.0.0", tfds.features.FeaturesDict(features), {"train": enumerate(examples)}, data_dir=folder,
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )  # fmt: skip
    return str(folder)


@pytest.fixture(scope="module", params=["folder", "records", "tfds", "digits"])
def config(request, tmp_path_factory) -> PretrainConfig:
    if request.param == "tfds":
        return PretrainConfig(dataset="tiny", data_dir=request.getfixturevalue("tfds_dir"))
    if request.param == "digits":
        return PretrainConfig(dataset="digits")
    photos = request.getfixturevalue("photos")
    if request.param == "records":
        records = tmp_path_factory.mktemp("records")
        prepare(f"folder:{photos}", str(records), 1)
        return PretrainConfig(dataset=f"records:{records}")
    return PretrainConfig(dataset=f"folder:{photos}")


def images_of(source) -> list[tuple[int, bytes]]:
    """Label and pixels of each image."""
    load, labels = source.loader(), labels_of(source)
    if source.random_access:
        images = tf.data.Dataset.range(source.num_instances).map(load)
    else:
        images = source.records(0, source.num_instances, in_order=True).map(lambda record, i, label: load(record))
    return list(zip(labels.tolist(), (image.tobytes() for image in images.as_numpy_iterator())))


def test_training_sees_the_rest_and_the_slice_judges(config, tmp_path):
    folder = held_out_folder(str(tmp_path), config, 0.2, 3)
    write_held_out(folder, config, 0.2, 3)
    splits = open_splits(f"folder:{folder}")
    rest, held_out = (images_of(source) for source in splits)
    whole = images_of(open_training_source(config))
    assert sorted(rest + held_out) == sorted(whole)  # nothing is lost, doubled or has another label
    if config.dataset != "digits":
        assert len(set(whole)) == len(whole)
        assert not set(rest) & set(held_out)
        assert np.bincount([label for label, _ in held_out]).tolist() == [4, 1, 1]
    else:
        sizes = np.bincount([label for label, _ in whole])
        np.testing.assert_array_equal(np.bincount([label for label, _ in held_out]), np.round(0.2 * sizes))
    assert all(source.bad.reasons == {} for source in splits)


def test_the_folder_stays_as_it_was_written(photos, tmp_path):
    config = PretrainConfig(dataset=f"folder:{photos}")
    folder = held_out_folder(str(tmp_path), config, 0.2, 0)
    write_held_out(folder, config, 0.2, 0)
    before = open_source(f"folder:{folder}").ids_digest()
    write_held_out(folder, config, 0.2, 1)  # it is there
    assert open_source(f"folder:{folder}").ids_digest() == before
    assert held_out_folder(str(tmp_path), config, 0.2, 1) != folder != held_out_folder(str(tmp_path), config, 0.3, 0)


def test_an_interrupted_copy_is_made_anew(photos, tmp_path):
    config = PretrainConfig(dataset=f"folder:{photos}")
    (tmp_path / "images.new" / "train" / "dog").mkdir(parents=True)
    (tmp_path / "images.new" / "train" / "dog" / "0.jpg").write_bytes(b"half")
    write_held_out(str(tmp_path / "images"), config, 0.2, 0)
    assert open_source(f"folder:{tmp_path / 'images'}").class_names == tuple(CLASSES)


def test_images_without_labels_judge_nothing(tmp_path):
    write_images(tmp_path, ["photos/0.jpg", "photos/1.jpg"])
    config = PretrainConfig(dataset=f"folder:{tmp_path}/photos")
    with pytest.raises(UserError, match="image 0 of the split has no label"):
        write_held_out(str(tmp_path / "images"), config, 0.2, 0)
    write_images(tmp_path, ["alone/train/a/0.jpg", "alone/train/b/1.jpg"])
    with pytest.raises(UserError, match="no class has two images"):
        write_held_out(str(tmp_path / "images"), PretrainConfig(dataset=f"folder:{tmp_path}/alone"), 0.2, 0)


def test_a_sweep_does_not_write_among_the_images(photos):
    config = PretrainConfig(dataset=f"folder:{photos}")
    with pytest.raises(UserError, match=r"holds .*/train/sweep/images, wanted a folder for the sweep outside of its"):
        write_held_out(f"{photos}/train/sweep/images", config, 0.2, 0)
    assert not (photos / "train" / "sweep").exists()


def test_a_sweep_does_not_go_on_with_other_images(photos, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    config = PretrainConfig(dataset=f"folder:{images}")
    folder = held_out_folder(str(tmp_path), config, 0.2, seed=0)
    for _ in range(2):
        refuse_other_images(folder, config)
    shutil.copy(images / "train" / "ant" / "0.jpg", images / "train" / "bee" / "new.jpg")
    with pytest.raises(UserError, match="has other images than when the sweep began"):
        refuse_other_images(folder, config)
