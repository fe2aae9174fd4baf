"""TensorFlow Datasets by name: prepared splits, read from their TFRecord shards."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from instcls_tf.data.decoding import DEFAULT_READING, BadImages, Reading
from instcls_tf.data.records import ShardedSource, Shards
from instcls_tf.data.source import classes_that_tell, digest_of_content, file_identity
from instcls_tf.data.tfds_builder import open_builder
from instcls_tf.errors import NoSplitError, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource(ShardedSource):
    """A prepared TFDS split, or a part of one."""

    split: str
    builder: Any

    def content_digest(self) -> str:
        """A hash of the dataset's version, the split and the files' names, sizes and times."""
        info = self.builder.info
        version = f"{info.full_name} {self.split} {info.splits[self.split].shard_lengths}".encode()
        return digest_of_content(self, [version, *(file_identity("", path) for path in self.shards.paths)])

    def parse(self, serialized: Any, instance_id: Any) -> tuple:
        """One record as `((encoded image, name), instance id int64, label int32)`."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        names = {"image", "label"} if self.class_names else {"image"}
        features = tfds.features.FeaturesDict({name: self.builder.info.features[name] for name in names})
        decoders = {"image": tfds.decode.SkipDecoding()}

        def parsed() -> tuple:
            example = features.deserialize_example(serialized, decoders=decoders)
            label = tf.cast(example["label"], tf.int32) if self.class_names else tf.constant(-1)
            return example["image"], label

        # A record that could not be read is empty.
        there = tf.strings.length(serialized) > 0
        encoded, label = tf.cond(there, parsed, lambda: (tf.constant(b""), tf.constant(-1)))
        return (encoded, self._name(instance_id)), instance_id, label

    def _name(self, instance_id: Any) -> Any:
        """As TFDS names an example, `FILE__PLACE`."""
        import tensorflow as tf

        ends = np.cumsum(self.shards.counts)
        shard = tf.searchsorted(tf.constant(ends), instance_id[None], side="right")[0]
        place = instance_id - tf.constant(ends - self.shards.counts)[shard] + tf.constant(self.shards.skips)[shard]
        names = tf.constant([os.path.basename(path) for path in self.shards.paths])
        return tf.strings.join([names[shard], tf.strings.as_string(place)], "__")


def open_tfds(dataset: str, split: str, data_dir: str | None, reading: Reading = DEFAULT_READING) -> TfdsSource:
    """Opens a prepared dataset.

    Args:
      dataset: TFDS's name.
      split: a split or a part of one in TFDS's notation, such as `train[:10%]`.
      data_dir: TFDS's data directory; None for its default.
      reading: how encoded images become pixels.

    Raises:
      UserError: unknown, not prepared, no such split, no images, or files of another kind.
    """
    import tensorflow_datasets as tfds

    builder = open_builder(dataset, data_dir, "digits, folder:PATH, records:PATH")
    info = builder.info
    try:
        instructions = info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        have = ", ".join(sorted(info.splits))
        raise NoSplitError(f"--dataset={dataset}: no split {split!r}, wanted one of {have}") from error
    features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    if not isinstance(features.get("image"), tfds.features.Image):
        raise UserError(f"--dataset={dataset}: wanted a dataset with an image feature named 'image'")
    kind = getattr(info.file_format, "value", "tfrecord")
    if kind != "tfrecord":
        raise UserError(f"--dataset={dataset}: its files are {kind}, wanted tfrecord")
    counts = np.array([instruction.take for instruction in instructions], np.int64)
    if counts.sum() < 2:
        raise UserError(f"--dataset={dataset}: wanted at least 2 images in split {split!r}: every image is a class")
    skips = np.array([instruction.skip for instruction in instructions], np.int64)
    shards = Shards(tuple(os.fspath(instruction.filename) for instruction in instructions), skips, counts, BadImages())
    label = features.get("label")
    class_names = classes_that_tell(label.names if isinstance(label, tfds.features.ClassLabel) else None)
    return TfdsSource(dataset, class_names, shards, reading, split, builder)
