"""Labelled datasets: their splits, their labels, and class-balanced subsets. No TensorFlow before images are read."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from instcls_tf.config import PretrainConfig
from instcls_tf.data.class_folders import not_labels
from instcls_tf.data.decoding import DEFAULT_READING, BadImages, Reading, decode_image, reading_of
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.overlap import overlapping
from instcls_tf.data.source import FixedIds, RandomAccessSource, Source, digest_of_content, digest_of_ids
from instcls_tf.data.sources import chosen_split, open_source
from instcls_tf.distributed.memory import free_bytes
from instcls_tf.errors import UserError, shown

# Their test split is published without labels; everybody reports the validation split.
_NO_TEST_LABELS = ("imagenet2012", "i_naturalist")
# TFDS's published class-balanced subsets of ImageNet, by the fraction of the labels.
_IMAGENET_SUBSETS = {0.01: "imagenet2012_subset/1pct", 0.1: "imagenet2012_subset/10pct"}
# The most of the free memory that images of a subset take, which several workers of a machine share.
_PART_OF_MEMORY = 0.6


class Splits(NamedTuple):
    """A dataset to learn from and one to be judged by, with the same classes."""

    train: Source
    test: Source

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.train.class_names or ())


def open_splits(
    dataset: str,
    data_dir: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    reading: Reading = DEFAULT_READING,
) -> Splits:
    """Opens two labelled splits of a dataset.

    Args:
      dataset: as for `open_source`.
      data_dir: TFDS's folder.
      train_split: what is learned from.
      test_split: what is judged by; None for `test`, or `validation` where the test split has no public labels.
      reading: how encoded images become pixels.

    Raises:
      UserError: a split is missing, empty or without labels, the classes of the two differ, or they have images in
        common.
    """
    train = open_labelled(dataset, train_split, data_dir, reading)
    test = open_labelled(dataset, test_split or default_test_split(dataset), data_dir, reading)
    if train.class_names != test.class_names:
        of_train, of_test = set(train.class_names or ()), set(test.class_names or ())
        different = sorted(of_train ^ of_test)
        where = "train" if different and different[0] in of_train else "test"
        only = f": {different[0]!r} is in the {where} split only" if different else ""
        raise UserError(f"--dataset={dataset}: the classes of the train and the test split differ{only}")
    _refuse_common_images(dataset, train, test, train_split, test_split)
    return Splits(train, test)


def splits_of_run(config: PretrainConfig) -> Splits:
    """The labelled images that judge a run on its way.

    Raises:
      UserError: see `open_splits`.
    """
    return open_splits(config.dataset, config.data_dir, bank_split(config), reading=reading_of(config))


def bank_split(config: PretrainConfig) -> str:
    """The split whose labels judge a run: the part of `train` that it is trained on.

    Of a run on anything else, such as `unlabelled` of stl10, all of `train`.
    """
    split = chosen_split(config, None, None)
    is_of_train = all(part.strip().partition("[")[0] == "train" for part in split.split("+"))
    return split if is_of_train else "train"


def _refuse_common_images(dataset: str, train: Source, test: Source, train_split: str, test_split: str | None) -> None:
    """What is learned from cannot judge, such as `train[80%:]` beside all of `train`."""
    if isinstance(train, FolderSource) and isinstance(test, FolderSource):
        roots = [os.path.realpath(source.root) for source in (train, test)]
        if os.path.commonpath(roots) not in roots:  # or each file of a large set would be asked for
            return
    common = overlapping(train, test)
    if common is not None:
        raise UserError(
            f"--test_split={test_split or default_test_split(dataset)}: has images of --train_split={train_split},"
            f" which is learned from, such as those of {shown(common)}: wanted others, such as 'train[80%:]' beside"
            f" --train_split='train[:80%]' of a TFDS dataset"
        )


def open_labelled(dataset: str, split: str, data_dir: str | None = None, reading: Reading = DEFAULT_READING) -> Source:
    """`open_source` of a split that has labels.

    Raises:
      UserError: there is no such split, it is empty or it has no labels.
    """
    source = open_source(dataset, split, data_dir, reading=reading)
    if source.class_names is None:
        no_labels = (
            f"the {split} split has no labels, wanted PATH/{{train,test}}/CLASS/* or a TFDS dataset with the feature"
            f" 'label', of two classes at least"
        )
        raise UserError(f"--dataset={dataset}: {getattr(source, 'unknown_classes', '') or no_labels}")
    return source


def why_unlabelled(source: Source) -> str:
    """What to say of images without labels whose folders look like classes; nothing of others."""
    if isinstance(source, FolderSource) and source.class_names is None:
        return not_labels(source.paths)
    return ""


def default_test_split(dataset: str) -> str:
    """The split that results are reported on."""
    return "validation" if dataset.startswith(_NO_TEST_LABELS) else "test"


def labels_of(source: Source) -> np.ndarray:
    """All labels in the order of instance ids, `[N]` int32.

    Raises:
      UserError: an image has none.
    """
    if source.random_access:
        labels = np.asarray(source.labels)
    else:
        labels = np.full([source.num_instances], -1, np.int32)
        for _, instance_id, label in source.records(0, source.num_instances, in_order=True).as_numpy_iterator():
            labels[instance_id] = label
    if labels.min() < 0:
        wanted = "" if source.class_names else ", wanted PATH/{train,test}/CLASS/* of two classes at least"
        raise UserError(f"--dataset={source.name}: image {int(np.argmin(labels))} of the split has no label{wanted}")
    return labels


def balanced_subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Ids of a random subset with as many images of each class.

    Args:
      labels: `[N]` integers.
      fraction: of N, in (0, 1]; at least one image per class is taken, and of a small class all there are.
      seed: two identical seeds give identical subsets.

    Returns:
      Ascending ids, int64.
    """
    if fraction == 1:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    classes = np.unique(labels)
    wanted = max(1, round(fraction * len(labels) / len(classes)))
    members = [random.permutation(np.flatnonzero(labels == label)) for label in classes]
    return np.sort(np.concatenate([ids[:wanted] for ids in members]))


def open_fraction(
    splits: Splits,
    dataset: str,
    data_dir: str | None,
    fraction: float,
    seed: int,
    reading: Reading = DEFAULT_READING,
) -> Source:
    """The training images of semi-supervised learning: ImageNet's published subsets, else a balanced draw.

    Args:
      splits: of the whole dataset.
      dataset, data_dir: where they came from.
      fraction: of the labels, in (0, 1].
      seed: of the draw.
      reading: how encoded images become pixels.
    """
    if fraction == 1:
        return splits.train
    if dataset.partition(":")[0] == "imagenet2012" and fraction in _IMAGENET_SUBSETS:
        return open_labelled(_IMAGENET_SUBSETS[fraction], "train", data_dir, reading)
    return take(splits.train, balanced_subset(labels_of(splits.train), fraction, seed))


def take(source: Source, ids: np.ndarray) -> RandomAccessSource:
    """The images `ids` of a source as a source of their own, with ids from 0."""
    if source.random_access:
        return Subset(source.name, source.class_names, np.asarray(source.labels)[ids], source, ids)
    wanted, found, size, room = set(ids.tolist()), {}, 0, _room()
    for record, instance_id, label in source.records(0, source.num_instances, in_order=True).as_numpy_iterator():
        if int(instance_id) in wanted:
            found[int(instance_id)] = (*record, label)
            size += len(record[0])
            if size > room:
                raise UserError(
                    f"--dataset={source.name}: {len(ids)} images are held in memory, encoded, and the first"
                    f" {len(found)} take more than the {room / 1e9:.1f} GB that this process may have: wanted fewer"
                    f" (--fraction), or the same images as files of a folder"
                )
    encoded, names, labels = zip(*(found[i] for i in ids.tolist()))
    own = np.array(labels, np.int32)
    return EncodedImages(source.name, source.class_names, own, encoded, names, source.bad, source.reading)


def _room() -> float:
    """Bytes that this worker may take for images: a part of what is free, which the others of its machine share."""
    from instcls_tf.distributed.collectives import local_size

    free = free_bytes()
    return math.inf if free is None else _PART_OF_MEMORY * free / local_size()


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(FixedIds):
    """Some images of a source that is read at random."""

    name: str
    class_names: tuple[str, ...] | None
    labels: np.ndarray  # [n] int32
    whole: RandomAccessSource
    ids: np.ndarray  # [n] ids in `whole`
    random_access: ClassVar[Literal[True]] = True

    @property
    def num_instances(self) -> int:
        """n."""
        return len(self.ids)

    def ids_digest(self) -> bytes:
        """64 bits of which image has which id."""
        return digest_of_ids(self.num_instances, [self.whole.ids_digest(), self.ids.tobytes()])

    def content_digest(self) -> str:
        """A hash of the whole source and the choice."""
        return digest_of_content(self, [self.whole.content_digest().encode(), self.ids.tobytes()])

    @property
    def bad(self) -> BadImages:
        """Of the whole source."""
        return self.whole.bad

    @property
    def reading(self) -> Reading | None:
        """As the whole source."""
        return self.whole.reading

    def content_of(self, instance_id: int) -> bytes:
        """An image as it is stored."""
        return self.whole.content_of(int(self.ids[instance_id]))

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from an instance id (int64 scalar) to its image, uint8 `[H, W, 3]`."""
        import tensorflow as tf

        load, ids = self.whole.loader(), tf.constant(self.ids, tf.int64)
        return lambda instance_id: load(ids[instance_id])


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImages(FixedIds):
    """A few records of a stream, held in memory as they were encoded."""

    name: str
    class_names: tuple[str, ...] | None
    labels: np.ndarray  # [n] int32
    encoded: tuple[bytes, ...]
    names: tuple[bytes, ...]
    bad: BadImages
    reading: Reading
    random_access: ClassVar[Literal[True]] = True

    @property
    def num_instances(self) -> int:
        """n."""
        return len(self.encoded)

    def ids_digest(self) -> bytes:
        """64 bits of which image has which id."""
        return digest_of_ids(self.num_instances, self.names)

    def content_digest(self) -> str:
        """A hash of the encoded images."""
        return digest_of_content(self, self.encoded)

    def content_of(self, instance_id: int) -> bytes:
        """An image as it is encoded."""
        return self.encoded[instance_id]

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from an instance id (int64 scalar) to its image, uint8 `[H, W, 3]`."""
        import tensorflow as tf

        names = tf.constant(self.names)

        def load(instance_id: tf.Tensor) -> tf.Tensor:
            # One at a time: a tensor of all of them would hold them in memory once more.
            encoded = tf.numpy_function(lambda place: self.encoded[place], [instance_id], tf.string)
            return decode_image(tf.ensure_shape(encoded, []), names[instance_id], self.bad, self.reading)

        return load
