"""Where images come from: scikit-learn's digits, a folder, or a TensorFlow Datasets name.

A source is a set of images, each with a stable instance id in `[0, num_instances)` and perhaps a class label. Listing a
folder or opening the digits does not import TensorFlow, so that a wrong path answers at once.

Digits and folders are read at random (`random_access`): `loader()` turns an id into an image. A TFDS dataset is a
stream of records: `records()` yields them with their ids, `loader()` turns one into an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Union

import numpy as np

from instcls_tf.errors import UserError

# What TensorFlow decodes by itself; it has no WebP decoder.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_FOLDER_PREFIX = "folder:"
_DIGITS_TEST_SIZE = 360
_DIGITS_SPLIT_SEED = 0


def open_source(dataset: str, split: str = "train", data_dir: str | None = None) -> Source:
    """Opens a dataset by the name given to `--dataset`.

    Args:
      dataset: `digits`, `folder:PATH` or the name of a prepared TFDS dataset.
      split: `train`, `test`, or another split that the dataset has.
      data_dir: TFDS's data directory; None for its default. Ignored by the other two.

    Returns:
      A source with `name`, `num_instances`, `class_names` (None if unlabelled) and `random_access`.

    Raises:
      UserError: the dataset or split does not exist, holds fewer than two images, or is not prepared.
    """
    if dataset == "digits":
        return _open_digits(split)
    if dataset.startswith(_FOLDER_PREFIX):
        return _open_folder(dataset, split)
    return _open_tfds(dataset, split, data_dir)


@dataclasses.dataclass(frozen=True, eq=False)
class DigitsSource:
    """8 x 8 scans held in memory. `images` is uint8 `[N, 8, 8, 3]`, `labels` int32 `[N]`."""

    name: str
    class_names: tuple[str, ...] | None
    images: np.ndarray
    labels: np.ndarray
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


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files below `root`; an id is the rank of a relative POSIX path. `labels` is int32 `[N]`, -1 if unknown."""

    name: str
    class_names: tuple[str, ...] | None
    root: str
    paths: tuple[str, ...]
    labels: np.ndarray
    random_access: ClassVar[bool] = True

    @property
    def num_instances(self) -> int:
        """The number of images, and so of instance ids."""
        return len(self.paths)

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from an instance id (int64 scalar) to its image, uint8 `[H, W, 3]`."""
        import tensorflow as tf

        # Outside the mapped function: a captured tensor is an input, a constant inside would enter the (2 GB) graph.
        paths = tf.constant([os.fsencode(os.path.join(self.root, path)) for path in self.paths])

        def load(instance_id: tf.Tensor) -> tf.Tensor:
            path = paths[instance_id]
            return decode_image(tf.io.read_file(path), path)

        return load


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """A prepared TFDS split: a stream of records. An id is the record's place in its shard after all shards before."""

    name: str
    class_names: tuple[str, ...] | None
    split: str
    builder: Any
    random_access: ClassVar[bool] = False

    @property
    def num_instances(self) -> int:
        """The number of images, and so of instance ids."""
        return self.builder.info.splits[self.split].num_examples

    def records(self, begin: int, end: int, in_order: bool = False) -> Any:
        """The records `begin` to `end` of the split as a `tf.data.Dataset`.

        Args:
          begin: first record, in the order of ids.
          end: one after the last record; above `begin`.
          in_order: read one shard after the other, so that ids ascend; otherwise several at a time.

        Returns:
          A dataset of `((encoded image, name), instance id int64, label int32)`.
        """
        import tensorflow as tf
        import tensorflow_datasets as tfds

        config = tfds.ReadConfig(add_tfds_id=True, try_autocache=False)
        if in_order:
            config.interleave_cycle_length = 1
        config.options.deterministic = True
        part = tfds.core.ReadInstruction(self.split, from_=begin, to=end, unit="abs")
        features = {"image", "label"} if self.class_names else {"image"}
        skip_decoding = tfds.decode.PartialDecoding(features, decoders={"image": tfds.decode.SkipDecoding()})
        with _quiet_absl():
            dataset = self.builder.as_dataset(split=part, decoders=skip_decoding, read_config=config)
        lengths = self.builder.info.splits[self.split].shard_lengths
        offsets = tf.constant(np.cumsum([0, *lengths[:-1]]), tf.int64)

        def with_id(example: dict[str, tf.Tensor]) -> tuple:
            name = example["tfds_id"]  # "cifar10-train.tfrecord-00000-of-00001__17"
            shard = tf.strings.to_number(tf.strings.regex_replace(name, _TFDS_ID, r"\1"), tf.int64)
            place = tf.strings.to_number(tf.strings.regex_replace(name, _TFDS_ID, r"\2"), tf.int64)
            label = tf.cast(example["label"], tf.int32) if self.class_names else tf.constant(-1)
            return (example["image"], name), offsets[shard] + place, label

        return dataset.map(with_id)

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from `(encoded image, name)` to the image, uint8 `[H, W, 3]`."""
        return lambda record: decode_image(*record)


Source = Union[DigitsSource, FolderSource, TfdsSource]


def decode_image(encoded: Any, name: Any) -> Any:
    """Decodes JPEG, PNG, BMP or the first frame of a GIF to RGB; a broken file raises an error that names it.

    Args:
      encoded: string scalar, the file's bytes.
      name: string scalar, the file's path or the record's name.

    Returns:
      uint8 `[H, W, 3]`. Greyscale is repeated, an alpha channel dropped.
    """
    import tensorflow as tf

    nothing = tf.data.Dataset.from_tensors(tf.zeros([0, 0, 3], tf.uint8))
    # The decoder's own error does not say which file. A nested dataset is the one way to catch it inside a graph.
    decoded = tf.data.Dataset.from_tensors(encoded).map(_decode).ignore_errors()
    image = decoded.concatenate(nothing).take(1).get_single_element()
    with tf.control_dependencies([tf.debugging.Assert(tf.size(image) > 0, ["cannot decode the image", name])]):
        return tf.identity(image)


def _decode(encoded: Any) -> Any:
    import tensorflow as tf

    def bmp() -> tf.Tensor:  # Unlike the others, the BMP decoder refuses to convert channels.
        image = tf.image.decode_bmp(encoded)
        return tf.cond(tf.shape(image)[-1] < 3, lambda: tf.repeat(image, 3, -1), lambda: image[..., :3])

    def other() -> tf.Tensor:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    image = tf.cond(tf.equal(tf.strings.substr(encoded, 0, 2), "BM"), bmp, other)
    return tf.ensure_shape(image, [None, None, 3])


# ---------------------------------------------------------------------------------------------------------- digits


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


# ---------------------------------------------------------------------------------------------------------- folder


def _open_folder(dataset: str, split: str) -> FolderSource:
    top = os.path.expanduser(dataset.removeprefix(_FOLDER_PREFIX))
    if not os.path.exists(top):
        raise UserError(f"--dataset={dataset}: no such folder")
    if not os.path.isdir(top):
        raise UserError(f"--dataset={dataset}: not a folder, wanted a folder of images")
    root = _split_folder(dataset, top, split)
    paths = _list_images(root)
    if not paths:
        where = "in that folder" if root == top else f"in {root}"
        raise UserError(f"--dataset={dataset}: no images ({', '.join(IMAGE_SUFFIXES)}) {where}")
    if len(paths) == 1:
        raise UserError(f"--dataset={dataset}: one image only, wanted at least 2 images: every image is a class")
    class_names = _class_names(paths)
    if class_names and split != "train" and os.path.isdir(os.path.join(top, "train")):
        class_names = _train_class_names(dataset, top, class_names)
    labels = np.full(len(paths), -1, np.int32)
    if class_names:
        rank = {name: index for index, name in enumerate(class_names)}
        labels[:] = [rank[path.split("/", 1)[0]] for path in paths]
    return FolderSource(dataset, class_names, root, paths, labels)


def _split_folder(dataset: str, top: str, split: str) -> str:
    if split == "train" and not os.path.isdir(os.path.join(top, "train")):
        return top
    candidates = ("test", "val") if split == "test" else (split,)
    for name in candidates:
        if os.path.isdir(os.path.join(top, name)):
            return os.path.join(top, name)
    wanted = " or ".join(os.path.join(top, name) for name in candidates)
    raise UserError(f"--dataset={dataset}: no {split} split, wanted a folder {wanted}")


def _list_images(root: str) -> tuple[str, ...]:
    """Relative POSIX paths of the images below `root`, sorted. Follows links, but enters no folder twice."""
    paths, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # In sorted order, so that which of two links to one folder counts does not depend on the file system.
        subfolders.sort()
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if below == "." else below + "/"
        # Names that begin with a dot are other programs' ("._photo.jpg" of macOS is no picture).
        paths += [prefix + name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
    return tuple(sorted(paths))


def _class_names(paths: tuple[str, ...]) -> tuple[str, ...] | None:
    """The first-level folders, or None unless every image lies in one."""
    if any("/" not in path for path in paths):
        return None
    return tuple(sorted({path.split("/", 1)[0] for path in paths}))


def _train_class_names(dataset: str, top: str, class_names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The train split's classes: a test split may lack some of them, but adds none."""
    train_names = _class_names(_list_images(os.path.join(top, "train")))
    unknown = sorted(set(class_names) - set(train_names or ()))
    if train_names and unknown:
        raise UserError(f"--dataset={dataset}: class folder {unknown[0]!r} is missing in {os.path.join(top, 'train')}")
    return train_names


# ------------------------------------------------------------------------------------------------------------ TFDS

_TFDS_ID = r"^.*-(\d+)-of-\d+.*__(\d+)$"


def _open_tfds(dataset: str, split: str, data_dir: str | None) -> TfdsSource:
    import tensorflow_datasets as tfds

    with _quiet_absl():
        try:
            builder = tfds.builder(dataset, data_dir=data_dir)
        except (AssertionError, ValueError) as error:
            raise UserError(f"--dataset={dataset}: wanted digits, folder:PATH or the name of a TFDS dataset") from error
        if not builder.is_prepared():
            where = f" --data_dir={data_dir}" if data_dir else ""
            raise UserError(f"--dataset={dataset}: not prepared, run first: tfds build {dataset}{where}")
        info = builder.info
    if split not in info.splits:
        raise UserError(f"--dataset={dataset}: no split {split!r}, wanted one of {', '.join(sorted(info.splits))}")
    features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    if not isinstance(features.get("image"), tfds.features.Image):
        raise UserError(f"--dataset={dataset}: wanted a dataset with an image feature named 'image'")
    if info.splits[split].num_examples < 2:
        raise UserError(f"--dataset={dataset}: wanted at least 2 images in split {split!r}: every image is a class")
    for index, name in enumerate(sorted(info.splits[split].filenames)):
        shard = re.match(_TFDS_ID, name + "__0")
        if not shard or int(shard[1]) != index:
            raise UserError(f"--dataset={dataset}: wanted shard files named ...-00000-of-00001, found {name}")
    label = features.get("label")
    class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None
    return TfdsSource(dataset, class_names, split, builder)


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Keeps TFDS's remarks about folders and versions off the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
