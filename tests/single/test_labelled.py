"""Labelled splits: what is refused, and what a class-balanced subset holds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.data import labelled
from instcls_tf.data.decoding import BadImages, Reading
from instcls_tf.data.labelled import balanced_subset, default_test_split, labels_of, open_fraction, open_splits, take
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import DigitsSource, open_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation.online_knn import OnlineKnn
from instcls_tf.pretraining import preflight
from instcls_tf.sweep.run import COMMANDS
from tests.images import write_images

LABELS = np.repeat([0, 1, 2], [100, 60, 3])


@pytest.fixture
def folder(tmp_path):
    def make(*names: str) -> str:
        write_images(tmp_path, list(names))
        return f"folder:{tmp_path}"

    return make


def pairs(*folders: str) -> list[str]:
    return [f"{folder}/{index}.png" for folder in folders for index in range(2)]


def test_splits_of_a_folder(folder):
    splits = open_splits(folder(*pairs("train/a", "train/b", "test/a", "test/b")))
    assert splits.num_classes == 2
    assert [source.num_instances for source in splits] == [4, 4]
    np.testing.assert_array_equal(labels_of(splits.train), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("trained_on", "bank"),
    [("train[:10%]", "train[:10%]"), ("train[:5]+train[9:]",) * 2, ("unlabelled", "train"), ("train+test", "train")],
)
def test_a_run_is_judged_by_the_part_of_train_that_it_is_trained_on(monkeypatch, trained_on, bank):
    """On its way, and at its end in a sweep; where it is trained on anything else, by all of train."""
    opened = []

    def open_labelled(dataset: str, split: str, *_) -> DigitsSource:
        opened.append(split)
        return open_source("digits", "test" if split == "test" else "train")

    monkeypatch.setattr(labelled, "open_labelled", open_labelled)
    config = PretrainConfig(dataset="stl10", tfds_split=trained_on, online_knn_every=1)
    OnlineKnn(config, SimpleNamespace(get_layer=lambda name: None))
    preflight._refuse_without_labels(config)
    assert opened == 2 * [bank, "test"]
    assert COMMANDS.judge(config)[-1] == f"--train_split={bank}"
    assert COMMANDS.judge(config.replace(dataset="folder:x"))[-1] == "--train_split=train"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train/0.png", "train/1.png", *pairs("test/a")], "the train split has no labels, wanted PATH/{train,test}/"),
        ([*pairs("train/a", "train/b"), "test/0.png", "test/1.png"], "the test split has no labels, wanted PATH/"),
        (pairs("train/a", "train/c", "test/b"), "class folder 'b' is missing in "),
        (
            pairs("train/a", "test/a"),
            "the train split has no labels, wanted PATH/{train,test}/CLASS/* or a TFDS dataset",
        ),
        (pairs("train/a", "train/b"), "no test split, wanted a folder "),
        (pairs("a", "b"), "the train split has no labels, wanted PATH/{train,test}/"),
        (pairs("a", "test/b"), "the train split has no labels, wanted PATH/{train,test}/"),
    ],
)
def test_what_cannot_judge_is_refused(folder, names, sentence):
    dataset = folder(*names)
    with pytest.raises(UserError) as refusal:
        open_splits(dataset)
    assert str(refusal.value).startswith(f"--dataset={dataset}: {sentence}")
    assert "\n" not in str(refusal.value)


def test_named_splits_differ_in_their_classes(folder):
    dataset = folder(*pairs("one/a", "one/b", "other/b", "other/c"))
    with pytest.raises(
        UserError, match="the classes of the train and the test split differ: 'a' is in the train split"
    ):
        open_splits(dataset, train_split="one", test_split="other")


def test_images_that_are_learned_from_do_not_judge(folder, tmp_path):
    dataset = folder(*pairs("train/a", "train/b", "test/a", "test/b"))
    prepare(dataset, str(tmp_path / "records"), shard_megabytes=1)
    for name in (dataset, f"records:{tmp_path}/records"):
        open_splits(name)
        with pytest.raises(UserError, match=r"--test_split=train: has images of --train_split=train, which is learned"):
            open_splits(name, test_split="train")


def test_an_empty_test_split_is_refused(folder, tmp_path):
    dataset = folder(*pairs("train/a", "train/b"))
    (tmp_path / "test" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^--dataset=folder:.*: no images \(.*\) in .*/test$"):
        open_splits(dataset)


def test_an_image_without_a_label_is_refused():
    source = DigitsSource("some", ("a",), np.zeros([3, 2, 2, 3], np.uint8), np.array([0, -1, 0], np.int32))
    with pytest.raises(UserError, match=r"^--dataset=some: image 1 of the split has no label$"):
        labels_of(source)


@pytest.mark.parametrize(
    ("dataset", "split"),
    [
        ("imagenet2012", "validation"),
        ("imagenet2012_subset/1pct", "validation"),
        ("i_naturalist2018", "validation"),
        ("cifar10", "test"),
        ("folder:/imagenet2012", "test"),
    ],
)
def test_split_with_public_labels(dataset, split):
    assert default_test_split(dataset) == split


def test_subsets_are_balanced_and_seeded():
    ids = balanced_subset(LABELS, 0.1, seed=1)
    # A tenth of 163 is about 5 for each of three classes; the smallest has only 3.
    np.testing.assert_array_equal(np.bincount(LABELS[ids]), [5, 5, 3])
    assert len(set(ids.tolist())) == len(ids)
    np.testing.assert_array_equal(ids, balanced_subset(LABELS, 0.1, seed=1))
    assert ids.tolist() != balanced_subset(LABELS, 0.1, seed=2).tolist()
    np.testing.assert_array_equal(np.bincount(LABELS[balanced_subset(LABELS, 1e-6, seed=1)]), [1, 1, 1])
    np.testing.assert_array_equal(balanced_subset(LABELS, 1, seed=1), np.arange(len(LABELS)))


def test_a_subset_shows_the_images_of_its_ids():
    whole = open_source("digits")
    ids = np.array([3, 700, 1436])
    part = take(whole, ids)
    assert part.num_instances == 3
    np.testing.assert_array_equal(part.labels, whole.labels[ids])
    load = part.loader()
    for place, instance_id in enumerate(ids):
        np.testing.assert_array_equal(load(place), whole.images[instance_id])


class Stream:
    """Three records that are read in turn, as TFDS gives them; the names are their images."""

    name, class_names, random_access, num_instances = "stream", ("a", "b"), False, 3

    def __init__(self, encoded: bytes):
        self.encoded, self.bad, self.reading = encoded, BadImages(), Reading(max_pixels=500)

    def records(self, begin, end, in_order):
        import tensorflow as tf

        assert (begin, end, in_order) == (0, 3, True)
        names, labels = tf.constant(["r0", "r1", "r2"]), tf.constant([1, 0, 1])
        return tf.data.Dataset.from_tensor_slices((([self.encoded] * 3, names), tf.range(3, dtype=tf.int64), labels))


def test_a_subset_of_a_stream_is_held_in_memory(folder, tmp_path):
    folder("image.png")
    stream = Stream((tmp_path / "image.png").read_bytes())
    np.testing.assert_array_equal(labels_of(stream), [1, 0, 1])
    part = take(stream, np.array([1, 2]))
    np.testing.assert_array_equal(part.labels, [0, 1])
    assert part.names == (b"r1", b"r2")
    assert part.loader()(1).shape == [20, 24, 3]
    stream.reading = Reading(max_pixels=400)
    assert take(stream, np.array([1, 2])).loader()(1).shape == [0, 0, 3]


def test_a_subset_that_memory_has_no_room_for(folder, tmp_path, monkeypatch):
    folder("image.png")
    stream = Stream((tmp_path / "image.png").read_bytes())
    monkeypatch.setattr(labelled, "free_bytes", lambda: 10 * len(stream.encoded))
    assert take(stream, np.arange(3)).num_instances == 3
    monkeypatch.setattr(labelled, "free_bytes", lambda: 3 * len(stream.encoded))
    with pytest.raises(UserError, match=r"3 images are held in memory, encoded, and the first 2 take more than the 0"):
        take(stream, np.arange(3))


def test_imagenet_has_published_subsets(monkeypatch):
    splits, asked = open_splits("digits"), []

    def open_and_note(*arguments, reading):
        asked.append((*arguments, reading))
        return open_source("digits")

    monkeypatch.setattr(labelled, "open_source", open_and_note)
    black = Reading(background="black")
    for fraction in (0.01, 0.1):
        open_fraction(splits, "imagenet2012", "data", fraction, seed=0, reading=black)
    subsets = ["imagenet2012_subset/1pct", "imagenet2012_subset/10pct"]
    wanted = [(name, "train", "data", black) for name in subsets]
    assert asked == wanted
    assert open_fraction(splits, "imagenet2012", "data", 1.0, seed=0) is splits.train
    assert open_fraction(splits, "digits", None, 0.1, seed=0).num_instances == 140
    assert asked == wanted
