"""Where images come from: scikit-learn's digits, a folder, record files, or a TensorFlow Datasets name.

A source is a set of images, each with a stable instance id in `[0, num_instances)` and perhaps a class label. Listing a
folder or opening the digits or record files does not import TensorFlow, so that a wrong path answers at once.

Digits and folders are read at random (`random_access`): `loader()` turns an id into an image. The others are streams of
records: `records()` yields them with their ids, `loader()` turns one into an image. An image that cannot be read is
empty, `[0, 0, 3]`, and its name and the reason are in the source's `bad`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Union

import numpy as np

from instcls_tf.config import PretrainConfig
from instcls_tf.data import folder, records
from instcls_tf.data.decoding import IMAGE_SUFFIXES, BadImages, decode_image
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.records import RecordSource
from instcls_tf.data.tfds import TfdsSource, open_tfds
from instcls_tf.errors import UserError

__all__ = ["IMAGE_SUFFIXES", "Source", "decode_image", "open_source", "open_training_source"]

_DIGITS_TEST_SIZE = 360
_DIGITS_SPLIT_SEED = 0


def open_source(
    dataset: str, split: str = "train", data_dir: str | None = None, *, workdir: str | None = None
) -> Source:
    """Opens a dataset by the name given to `--dataset`.

    Args:
      dataset: `digits`, `folder:PATH`, `records:PATH` or the name of a prepared TFDS dataset.
      split: `train`, `test`, or another split that the dataset has.
      data_dir: TFDS's data directory; None for its default. Ignored by the others.
      workdir: of the run whose instance ids are wanted: a folder's manifest is there.

    Returns:
      A source with `name`, `num_instances`, `class_names` (None if unlabelled), `bad` and `random_access`.

    Raises:
      UserError: the dataset or split does not exist, holds fewer than two images, or is not prepared.
    """
    if dataset == "digits":
        return _open_digits(split)
    if dataset.startswith(folder.PREFIX):
        return folder.open_folder(dataset, split, workdir)
    if dataset.startswith(records.PREFIX):
        return records.open_records(dataset, split)
    return open_tfds(dataset, split, data_dir)


def open_training_source(config: PretrainConfig, data_dir: str | None = None, workdir: str | None = None) -> Source:
    """The images of a recipe, with the instance ids of its run.

    Args:
      config: the recipe.
      data_dir: instead of the recipe's.
      workdir: instead of the recipe's, for a run whose folder was moved.

    Raises:
      UserError: see `open_source`.
    """
    is_tfds = config.dataset != "digits" and not config.dataset.startswith((folder.PREFIX, records.PREFIX))
    split = config.tfds_split if is_tfds else "train"
    return open_source(config.dataset, split, data_dir or config.data_dir, workdir=workdir or config.workdir)


@dataclasses.dataclass(frozen=True, eq=False)
class DigitsSource:
    """8 x 8 scans held in memory. `images` is uint8 `[N, 8, 8, 3]`, `labels` int32 `[N]`."""

    name: str
    class_names: tuple[str, ...] | None
    images: np.ndarray
    labels: np.ndarray
    bad: BadImages = dataclasses.field(default_factory=BadImages)
    random_access: ClassVar[bool] = True

    @property
    def num_instances(self) -> int:
        """The number of images, and so of instance ids."""
        return len(self.images)

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from an instance id (int64 scalar) to its image, uint8 `[8, 8, 3]`."""
        import tensorflow as tf

        images = tf.constant(self.images)
        return lambda instance_id: images[instance_id]


Source = Union[DigitsSource, FolderSource, RecordSource, TfdsSource]


def _open_digits(split: str) -> DigitsSource:
    if split not in ("train", "test"):
        raise UserError(f"--dataset=digits: no split {split!r}, wanted train or test")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        scans, labels, test_size=_DIGITS_TEST_SIZE, stratify=labels, random_state=_DIGITS_SPLIT_SEED
    )
    scans, labels = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    grey = np.round(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # The scans count 0 to 16.
    images = np.ascontiguousarray(np.repeat(grey, 3, axis=-1))
    return DigitsSource("digits", tuple("0123456789"), images, labels.astype(np.int32))
