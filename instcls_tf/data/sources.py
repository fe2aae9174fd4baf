"""Where images come from: scikit-learn's digits, a folder, record files, or a TensorFlow Datasets name.

Listing a folder or opening the digits or record files does not import TensorFlow, so that a wrong path answers at once.
Digits and folders are read at random, record files and TFDS are streams; see `source` for what they have in common.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from instcls_tf.config import PretrainConfig
from instcls_tf.data import folder, records
from instcls_tf.data.decoding import DEFAULT_READING, BadImages, Reading, reading_of
from instcls_tf.data.source import FixedIds, Source, digest_of_content, digest_of_ids
from instcls_tf.data.tfds import open_tfds
from instcls_tf.errors import NoSplitError

_DIGITS_TEST_SIZE = 360
_DIGITS_SPLIT_SEED = 0


def open_source(
    dataset: str,
    split: str = "train",
    data_dir: str | None = None,
    *,
    workdir: str | None = None,
    reading: Reading = DEFAULT_READING,
) -> Source:
    """Opens a dataset by the name given to `--dataset`.

    Args:
      dataset: `digits`, `folder:PATH`, `records:PATH` or the name of a prepared TFDS dataset.
      split: `train`, `test`, or another split that the dataset has.
      data_dir: TFDS's data directory; None for its default. Ignored by the others.
      workdir: of the run whose instance ids are wanted: a folder's manifest is there.
      reading: how encoded images become pixels.

    Returns:
      A source, see `instcls_tf.data.source`.

    Raises:
      UserError: the dataset or split does not exist, holds fewer than two images, or is not prepared.
    """
    if dataset == "digits":
        return _open_digits(split)
    if dataset.startswith(folder.PREFIX):
        return folder.open_folder(dataset, split, workdir, reading)
    if dataset.startswith(records.PREFIX):
        return records.open_records(dataset, split, reading)
    return open_tfds(dataset, split, data_dir, reading)


def chosen_split(config: PretrainConfig, dataset: str | None, split: str | None) -> str:
    """The split that is meant: the given one, or what the run was trained on; of other images, `train`.

    Args:
      config: the run's recipe.
      dataset: None for the run's own.
      split: None if it is not given.
    """
    is_other = dataset is not None and dataset != config.dataset
    is_tfds = config.dataset != "digits" and not config.dataset.startswith((folder.PREFIX, records.PREFIX))
    return split or (config.tfds_split if is_tfds and not is_other else "train")


def open_training_source(
    config: PretrainConfig, data_dir: str | None = None, workdir: str | None = None, begins: bool = False
) -> Source:
    """The images of a recipe, with the instance ids of its run.

    Args:
      config: the recipe.
      data_dir: instead of the recipe's.
      workdir: instead of the recipe's, for a run whose folder was moved.
      begins: whether the run is a new one, for which ids that an earlier one has left in the folder do not count.

    Raises:
      UserError: see `open_source`.
    """
    return open_source(
        config.dataset,
        chosen_split(config, None, None),
        data_dir or config.data_dir,
        workdir=None if begins else workdir or config.workdir,
        reading=reading_of(config),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DigitsSource(FixedIds):
    """8 x 8 scans held in memory. `images` is uint8 `[N, 8, 8, 3]`, `labels` int32 `[N]`."""

    name: str
    class_names: tuple[str, ...] | None
    images: np.ndarray
    labels: np.ndarray
    bad: BadImages = dataclasses.field(default_factory=BadImages)
    reading: ClassVar[None] = None
    random_access: ClassVar[Literal[True]] = True

    @property
    def num_instances(self) -> int:
        """The number of images, and so of instance ids."""
        return len(self.images)

    def ids_digest(self) -> bytes:
        """64 bits of which image has which id."""
        return digest_of_ids(self.num_instances)

    def content_digest(self) -> str:
        """A hash of the pixels."""
        return digest_of_content(self, [np.ascontiguousarray(self.images).tobytes()])

    def content_of(self, instance_id: int) -> bytes:
        """The pixels of an image."""
        return self.images[instance_id].tobytes()

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from an instance id (int64 scalar) to its image, uint8 `[8, 8, 3]`."""
        import tensorflow as tf

        images = tf.constant(self.images)
        return lambda instance_id: images[instance_id]


def _open_digits(split: str) -> DigitsSource:
    if split not in ("train", "test"):
        raise NoSplitError(f"--dataset=digits: no split {split!r}, wanted train or test")
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
