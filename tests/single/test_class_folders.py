"""Folders are labels where somebody meant them: below a split, two at least."""

from __future__ import annotations

import json

import numpy as np
import pytest

from instcls_tf.data.class_folders import not_labels
from instcls_tf.data.folder import open_folder
from instcls_tf.data.labelled import labels_of, why_unlabelled
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation.commands import features_from_files
from instcls_tf.search.duplicates import Duplicates, Images
from tests.images import write_images

SENTENCE = (
    "Folders ({}) are not taken for labels: those of PATH/{{train,test}}/CLASS/* are, where every image lies in one of"
    " at least two classes."
)


@pytest.mark.parametrize(
    ("names", "split", "classes"),
    [
        (["train/a/0.png", "train/b/1.png"], "train", ("a", "b")),
        (["photos/a/0.png", "photos/b/1.png"], "photos", ("a", "b")),  # a split that is named
        (["train/a/0.png", "train/b/1.png", "test/b/2.png", "test/b/3.png"], "test", ("a", "b")),
        (["DCIM/Camera/0.png", "DCIM/Camera/1.png"], "train", None),
        (["2019/0.png", "2020/1.png"], "train", None),
        (["2019/0.png", "2019/1.png", "test/b/2.png"], "train", None),
        (["train/DCIM/0.png", "train/DCIM/1.png"], "train", None),
        (["photos/a/0.png", "photos/a/1.png"], "photos", None),
        (["train/a/0.png", "train/a/1.png", "test/a/2.png", "test/a/3.png"], "test", None),
        (["train/a/0.png", "train/b/1.png", "train/2.png"], "train", None),
    ],
)
def test_which_folders_are_classes(tmp_path, names, split, classes):
    write_images(tmp_path, names)
    source = open_folder(f"folder:{tmp_path}", split)
    assert source.class_names == classes
    assert (source.labels >= 0).all() if classes else (source.labels == -1).all()


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["DCIM/Camera/0.png", "DCIM/Camera/1.png"], "'DCIM'"),
        (["2019/0.png", "2020/1.png", "2.png"], "'2019', '2020'"),
        ([f"{year}/0.png" for year in range(2010, 2017)], "'2010', '2011', '2012', '2013', '2014', …"),
        (["train/a/0.png", "train/a/1.png"], "'a'"),
    ],
)
def test_folders_that_are_no_labels_are_told(tmp_path, names, listed):
    write_images(tmp_path, names)
    assert why_unlabelled(open_source(f"folder:{tmp_path}")) == SENTENCE.format(listed)


def test_nothing_is_told_without_folders_or_with_labels(tmp_path):
    write_images(tmp_path, ["plain/0.png", "plain/1.png", "train/a/0.png", "train/b/1.png"])
    plain = open_folder(f"folder:{tmp_path}/plain", "train")
    assert not_labels(plain.paths) == why_unlabelled(plain) == ""
    assert why_unlabelled(open_source(f"folder:{tmp_path}")) == why_unlabelled(open_source("digits")) == ""


def test_labels_that_are_asked_for_are_told_how_to_be_given(tmp_path):
    write_images(tmp_path, ["2019/0.png", "2020/1.png"])
    with pytest.raises(UserError, match=r"image 0 of the split has no label, wanted PATH/{train,test}/CLASS/\* of two"):
        labels_of(open_source(f"folder:{tmp_path}"))


def test_a_photograph_in_two_albums_is_no_contradiction(tmp_path):
    def conflicts(dataset: str) -> list:
        source = open_source(f"folder:{dataset}")
        names, ids = list(source.paths), np.arange(2)
        images = Images((source,), ("train",), np.zeros(2, np.int32), ids, names, source.labels, None, None)
        return Duplicates(images, [], [], [[0, 1]], [], [], [], [], 0.9, None).conflicts

    write_images(tmp_path, ["albums/best/0.png", "albums/2019/0.png", "cells/train/a/0.png", "cells/train/b/0.png"])
    assert conflicts(f"{tmp_path}/albums") == []
    assert conflicts(f"{tmp_path}/cells") == [[0, 1]]


def test_records_of_a_single_class_have_no_labels(tmp_path):
    """Also those that an earlier version has prepared, with the class in the index and in each record."""
    write_images(tmp_path / "photos", ["train/a/0.png", "train/b/1.png"])
    prepare(f"folder:{tmp_path}/photos", str(tmp_path / "records"), 1)
    assert labels_of(open_source(f"records:{tmp_path}/records")).tolist() == [0, 1]
    path = tmp_path / "records" / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "class_names": ["a"], "classes_of": {"train": ["a"]}}))
    source = open_source(f"records:{tmp_path}/records")
    assert source.class_names is None
    assert [int(label) for _, _, label in source.records(0, 2)] == [-1, -1]


def test_a_dataset_of_tfds_of_a_single_class_has_no_labels(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(names=["cell"])})
    examples = [{"image": np.full([6, 5, 3], i, np.uint8), "label": 0} for i in range(3)]
    tfds.dataset_builders.store_as_tfds_dataset(
        "cells", "1.0.0", features, {"train": enumerate(examples)}, data_dir=tmp_path,
        download_config=tfds.download.DownloadConfig(num_shards=1),
    )  # fmt: skip
    source = open_source("cells", data_dir=str(tmp_path))
    assert source.class_names is None
    assert [int(label) for _, _, label in source.records(0, 3)] == [-1, -1, -1]


def test_features_of_a_single_class_judge_nothing(tmp_path):
    paths = tuple(str(tmp_path / f"{split}.npz") for split in ("train", "test"))
    for path in paths:
        np.savez(path, backbone=np.eye(3, dtype=np.float32), labels=np.zeros(3, np.int32))
    with pytest.raises(UserError) as refusal:
        features_from_files(paths, "backbone")
    assert (
        str(refusal.value) == f"--train_features={paths[0]}: has labels of one class only, wanted two classes at least"
    )
