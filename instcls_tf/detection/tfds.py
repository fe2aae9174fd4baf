"""TFDS's `voc` as a detection source: one pass at the start, which keeps the encoded images in memory.

VOC 2007 takes 0.9 GB per worker that way, and training then reads images in any order, as from a folder.
"""

from __future__ import annotations

import io

import numpy as np
import tensorflow_datasets as tfds

from instcls_tf.data.decoding import Reading
from instcls_tf.data.pillow_reading import UnreadableError, shown_size
from instcls_tf.data.tfds_builder import open_builder
from instcls_tf.data.threads import without_autotuner
from instcls_tf.detection.annotations import Annotation, DetectionSource
from instcls_tf.distributed import workers
from instcls_tf.errors import UserError

# What VOC's folders and TFDS call the same images.
_SPLITS = {"trainval": "train+validation", "val": "validation"}


def open_tfds_split(dataset: str, split: str, data_dir: str | None, reading: Reading) -> DetectionSource:
    """Reads a split of a prepared dataset with VOC's features.

    Raises:
      UserError: the dataset is unknown, not prepared, has no such split, or no objects in VOC's form.
    """
    builder = open_builder(dataset, data_dir, "folder:PATH in Pascal VOC layout")
    workers.start()  # before TensorFlow reads anything: after that it takes no other device
    features = builder.info.features
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}  # one per object
    if not {"bbox", "label", "is_difficult"} <= set(objects.keys()):
        raise UserError(f"--dataset={dataset}: wanted objects with bbox, label and is_difficult, as in TFDS's voc")
    split = _SPLITS.get(split, split)
    missing = [name for name in split.split("+") if name not in builder.info.splits]
    if missing:
        there = ", ".join(sorted(builder.info.splits))
        raise UserError(f"--dataset={dataset}: no split {missing[0]!r}, wanted one of {there}")
    config = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1, add_tfds_id=True)
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = without_autotuner(builder.as_dataset(split=split, decoders=decoders, read_config=config))
    encoded, annotations = [], []
    for record in records.as_numpy_iterator():
        encoded.append(record["image"])
        annotations.append(_annotation(dataset, record))
    if not annotations:
        raise UserError(f"--dataset={dataset}: the {split} split is empty")
    return DetectionSource(tuple(objects["label"].names), tuple(annotations), encoded=tuple(encoded), reading=reading)


def _annotation(dataset: str, record: dict) -> Annotation:
    name, objects = record["tfds_id"].decode(), record["objects"]
    try:
        (height, width), _ = shown_size(io.BytesIO(record["image"]))
    except UnreadableError as error:
        raise UserError(f"--dataset={dataset}: cannot decode the image {name} ({error})") from error
    # TFDS divides VOC's pixel numbers, which count from 1, by the image's size.
    pixels = objects["bbox"] * np.array([height, width, height, width], np.float32) - np.array([1, 1, 0, 0], np.float32)
    boxes = np.maximum(pixels[:, [1, 0, 3, 2]], 0)
    return Annotation(
        name, height, width, boxes, objects["label"].astype(np.int32), objects["is_difficult"].astype(bool)
    )
