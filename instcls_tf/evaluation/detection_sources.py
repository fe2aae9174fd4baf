"""Images with boxes: folders in Pascal VOC layout, and TFDS's `voc`.

A folder has `Annotations/*.xml`, `ImageSets/Main/{train,val,trainval,test}.txt` and `JPEGImages/`. Reading one does not
import TensorFlow, so that a mistake in the data is answered at once.

Boxes are kept as `(x0, y0, x1, y1)` on the continuous plane of the image, whose left upper corner is (0, 0): VOC counts
pixels from 1 and includes the last one, so `x0 = xmin - 1` and `x1 = xmax`. Overlaps of such boxes are those that the
VOC devkit computes with its "+ 1" (and Detectron2, which reads and writes the same way).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np

from instcls_tf.data.sources import IMAGE_SUFFIXES
from instcls_tf.errors import UserError

_FOLDER_PREFIX = "folder:"
_LAYOUT = ("Annotations", os.path.join("ImageSets", "Main"), "JPEGImages")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What is known of one image of `height` x `width` pixels.

    `boxes` is float32 `[n, 4]`, `labels` int32 `[n]` (places in the split's `class_names`), `difficult` bool `[n]`.
    """

    name: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionSource:
    """One split. Either `paths` are the images' files (a folder) or `encoded` their bytes (TFDS), the other is None."""

    class_names: tuple[str, ...]
    annotations: tuple[Annotation, ...]
    paths: tuple[str, ...] | None = None
    encoded: tuple[bytes, ...] | None = None

    def digest(self) -> str:
        """A hash of the classes, the images' names and sizes, and their objects."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for annotation in self.annotations:
            head = f"{annotation.name!r} {annotation.height} {annotation.width} {len(annotation.labels)}"
            digest.update(head.encode(errors="surrogateescape"))
            for values in (annotation.boxes, annotation.labels, annotation.difficult):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def reader(self) -> Callable[[Any], Any]:
        """A graph function from an image's place (int64 scalar) to its encoded bytes."""
        import tensorflow as tf

        # Outside the mapped function: a captured tensor is an input, a constant inside would enter the (2 GB) graph.
        if self.encoded is not None:
            encoded = tf.constant(self.encoded)
            return lambda index: encoded[index]
        paths = tf.constant([os.fsencode(path) for path in self.paths])
        return lambda index: tf.io.read_file(paths[index])


def open_detection_data(
    dataset: str, train_split: str, test_split: str, data_dir: str | None = None
) -> tuple[DetectionSource, DetectionSource]:
    """Opens the split to train on and the one to test on; the classes are those of the first.

    Args:
      dataset: `folder:PATH` in Pascal VOC layout, at PATH or one folder deeper, or a prepared TFDS `voc/...`.
      train_split, test_split: names of files in `ImageSets/Main`, or of TFDS splits ("trainval" is both of VOC's).
      data_dir: TFDS's data directory.

    Raises:
      UserError: one sentence on what is missing or wrong, naming the file.
    """
    if dataset.startswith(_FOLDER_PREFIX):
        root = _layout_root(dataset)
        train = _open_folder_split(dataset, root, train_split, None)
        test = _open_folder_split(dataset, root, test_split, train.class_names)
    else:
        from instcls_tf.evaluation.detection_tfds import open_tfds_split

        train, test = (open_tfds_split(dataset, split, data_dir) for split in (train_split, test_split))
    for source, split in ((train, train_split), (test, test_split)):
        if all(annotation.difficult.all() for annotation in source.annotations):
            raise UserError(f"--dataset={dataset}: no image of the {split} split has a labelled object that counts")
    return train, test


def _layout_root(dataset: str) -> str:
    top = os.path.expanduser(dataset.removeprefix(_FOLDER_PREFIX))
    if not os.path.isdir(top):
        raise UserError(f"--dataset={dataset}: no such folder")
    candidates = [top] + sorted(entry.path for entry in os.scandir(top) if entry.is_dir())
    roots = [root for root in candidates if all(os.path.isdir(os.path.join(root, part)) for part in _LAYOUT)]
    if not roots:
        wanted = ", ".join(f"{part}/" for part in _LAYOUT)
        raise UserError(f"--dataset={dataset}: not in Pascal VOC layout, wanted {wanted} there or one folder deeper")
    if len(roots) > 1 and roots[0] != top:
        raise UserError(f"--dataset={dataset}: holds several data sets ({', '.join(roots)}), name one of them")
    return roots[0]


def _open_folder_split(dataset: str, root: str, split: str, class_names: tuple[str, ...] | None) -> DetectionSource:
    names = _names_of_split(dataset, root, split)
    found = [_read_annotation(os.path.join(root, "Annotations", f"{name}.xml"), name) for name in names]
    if class_names is None:
        class_names = tuple(sorted({label for objects, *_ in found for label in objects}))
    rank = {label: index for index, label in enumerate(class_names)}
    annotations = []
    for name, (objects, boxes, difficult, (height, width)) in zip(names, found):
        unknown = [label for label in objects if label not in rank]
        if unknown:
            path = os.path.join(root, "Annotations", f"{name}.xml")
            raise UserError(f"{path}: class {unknown[0]!r} of the {split} split is not in the split that is trained on")
        labels = np.array([rank[label] for label in objects], np.int32)
        annotations.append(Annotation(name, height, width, boxes, labels, difficult))
    paths = _image_paths(os.path.join(root, "JPEGImages"), names)
    return DetectionSource(class_names, tuple(annotations), paths=paths)


def _names_of_split(dataset: str, root: str, split: str) -> list[str]:
    folder = os.path.join(root, "ImageSets", "Main")
    path = os.path.join(folder, f"{split}.txt")
    if not os.path.isfile(path):
        # "cat_train.txt" of VOC lists an object's presence, not a split.
        there = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".txt") and "_" not in name)
        raise UserError(f"--dataset={dataset}: no split {split!r}, found in {folder}: {', '.join(there) or 'nothing'}")
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        names = [line.strip() for line in file if line.strip()]
    if not names:
        raise UserError(f"--dataset={dataset}: the {split} split is empty ({path} names no image)")
    return names


def _image_paths(folder: str, names: list[str]) -> tuple[str, ...]:
    files = {}
    for file in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in IMAGE_SUFFIXES:
            files.setdefault(stem, os.path.join(folder, file))
    for name in names:
        if name not in files:
            raise UserError(f"{os.path.join(folder, name)}: no such image ({', '.join(IMAGE_SUFFIXES)})")
    return tuple(files[name] for name in names)


# ------------------------------------------------------------------------------------------------------------- XML


def _read_annotation(path: str, name: str) -> tuple[list[str], np.ndarray, np.ndarray, tuple[int, int]]:
    """`(class of each object, boxes [n, 4], difficult [n], (height, width))` of an annotation file."""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise UserError(f"{path}: cannot read the labels of image {name!r} ({error.strerror})") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: not XML ({error})") from error
    if root.tag != "annotation":
        raise UserError(f"{path}: not an annotation in Pascal VOC's form, its outermost element is <{root.tag}>")
    height, width = (int(_number(root, f"size/{side}", path)) for side in ("height", "width"))
    if min(height, width) < 1:
        raise UserError(f"{path}: says the image has {width} x {height} pixels")
    labels, boxes, difficult = [], [], []
    for item in root.iterfind("object"):
        label = (item.findtext("name") or "").strip()
        if not label:
            raise UserError(f"{path}: an <object> has no <name>")
        labels.append(label)
        boxes.append(_read_box(item, label, height, width, path))
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    return labels, np.array(boxes, np.float32).reshape(-1, 4), np.array(difficult, bool), (height, width)


def _read_box(item: ElementTree.Element, label: str, height: int, width: int, path: str) -> tuple[float, ...]:
    xmin, ymin, xmax, ymax = corners = [_number(item, f"bndbox/{corner}", path) for corner in _CORNERS]
    shown = ", ".join(f"{corner}={value:g}" for corner, value in zip(_CORNERS, corners))
    if not (xmin <= xmax and ymin <= ymax):
        raise UserError(f"{path}: the box of a {label!r} is inside out ({shown})")
    # Some tools count pixels from 0: their first column is clipped, not refused.
    if not (xmin >= 0 and ymin >= 0 and xmax <= width and ymax <= height):
        raise UserError(f"{path}: the box of a {label!r} ({shown}) leaves the image of {width} x {height} pixels")
    return max(xmin - 1, 0), max(ymin - 1, 0), max(xmax, 1), max(ymax, 1)


def _number(element: ElementTree.Element, where: str, path: str) -> float:
    text = element.findtext(where)
    with contextlib.suppress(TypeError, ValueError):
        if np.isfinite(float(text)):
            return float(text)
    raise UserError(f"{path}: wanted a number in <{where.replace('/', '><')}>, found {text!r}")
