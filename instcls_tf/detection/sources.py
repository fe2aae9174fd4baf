"""Images with boxes: folders in Pascal VOC layout, and TFDS's `voc`.

A folder has `Annotations/*.xml`, `ImageSets/Main/{train,val,trainval,test}.txt` and `JPEGImages/`. Reading one does not
import TensorFlow, so that a mistake in the data is answered at once.

Sizes and boxes are those of an image as it is shown, its EXIF orientation applied, as tools show it that draw boxes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import xml.etree.ElementTree as ElementTree

import numpy as np

from instcls_tf.data.decoding import DEFAULT_READING, Reading
from instcls_tf.data.image_suffixes import IMAGE_SUFFIXES
from instcls_tf.data.listing import is_made_by_a_program
from instcls_tf.data.tfds_builder import refuse_path
from instcls_tf.detection.annotations import Annotation, DetectionSource
from instcls_tf.detection.image_files import problems_of_images
from instcls_tf.errors import UserError, shown, some_of
from instcls_tf.files import read_text

_FOLDER_PREFIX = "folder:"
_LAYOUT = ("Annotations", os.path.join("ImageSets", "Main"), "JPEGImages")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Pixels by which a box may leave its image and is clipped.
_SLACK = 2


def open_detection_data(
    dataset: str,
    train_split: str,
    test_split: str,
    data_dir: str | None = None,
    reading: Reading = DEFAULT_READING,
) -> tuple[DetectionSource, DetectionSource]:
    """Opens the split to train on and the one to test on; the classes are those of the first.

    Args:
      dataset: `folder:PATH` in Pascal VOC layout, at PATH or one folder deeper, or a prepared TFDS `voc/...`.
      train_split, test_split: names of files in `ImageSets/Main`, or of TFDS splits ("trainval" is both of VOC's).
      data_dir: TFDS's data directory.
      reading: how the images become pixels; the run's.

    Raises:
      UserError: one sentence on what is missing or wrong, naming the file.
    """
    if dataset.startswith(_FOLDER_PREFIX):
        train, test = _open_folder(dataset, train_split, test_split, reading)
    else:
        refuse_path(dataset)
        from instcls_tf.detection.tfds import open_tfds_split

        train, test = (open_tfds_split(dataset, split, data_dir, reading) for split in (train_split, test_split))
    for source, split in ((train, train_split), (test, test_split)):
        if all(annotation.difficult.all() for annotation in source.annotations):
            raise UserError(f"--dataset={dataset}: no image of the {split} split has a labelled object that counts")
    return train, test


# ----------------------------------------------------------------------------------------------------------- Folders


def _open_folder(
    dataset: str, train_split: str, test_split: str, reading: Reading
) -> tuple[DetectionSource, DetectionSource]:
    root = _layout_root(dataset)
    problems: list[str] = []
    images = _images_by_name(dataset, os.path.join(root, "JPEGImages"))
    found = [_read_split(dataset, root, split, problems) for split in (train_split, test_split)]
    common = sorted({labels.name for labels in found[0]} & {labels.name for labels in found[1]})
    if common:
        raise UserError(
            f"--test_split={test_split}: has {len(common)} image(s) of --train_split={train_split}, which is learned"
            f" from, such as {shown(common[0])}"
        )
    if not problems:  # else classes would be missing that are only in files that cannot be read
        known = {label for labels in found[0] for label in labels.objects}
        problems = [
            f"{labels.path}: class {label!r} of the {test_split} split is not in the split that is trained on"
            for labels in found[1]
            for label in dict.fromkeys(labels.objects)
            if label not in known
        ]
    named = {labels.name: labels for split in found for labels in split}
    suffixes = ", ".join(IMAGE_SUFFIXES)
    problems += [
        f"{os.path.join(root, 'JPEGImages', name)}: no such image ({suffixes})" for name in named if name not in images
    ]
    there = [(images[name], labels.height, labels.width) for name, labels in named.items() if name in images]
    problems += problems_of_images(there, reading)
    _refuse(dataset, problems)
    class_names = tuple(sorted({label for labels in found[0] for label in labels.objects}))
    rank = {label: index for index, label in enumerate(class_names)}
    train, test = (
        DetectionSource(
            class_names,
            tuple(labels.annotation(rank) for labels in split),
            paths=tuple(images[labels.name] for labels in split),
            reading=reading,
            notes=_about_clipped(name, split),
        )
        for name, split in zip((train_split, test_split), found)
    )
    return train, test


def _refuse(dataset: str, problems: list[str]) -> None:
    """All that is wrong at once: who mends a data set wants to see it once, not file by file."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        said = some_of(problems, separator="; ")
        raise UserError(f"--dataset={dataset}: {len(problems)} things are wrong in it: {said}")


def _layout_root(dataset: str) -> str:
    top = os.path.expanduser(dataset.removeprefix(_FOLDER_PREFIX))
    if not os.path.isdir(top):
        raise UserError(f"--dataset={dataset}: no such folder")
    below = [name for name in _names_in(dataset, top) if not is_made_by_a_program(os.fsencode(name))]
    candidates = [top, *(os.path.join(top, name) for name in below)]
    roots = [root for root in candidates if all(os.path.isdir(os.path.join(root, part)) for part in _LAYOUT)]
    if not roots:
        wanted = ", ".join(f"{part}/" for part in _LAYOUT)
        raise UserError(f"--dataset={dataset}: not in Pascal VOC layout, wanted {wanted} there or one folder deeper")
    if len(roots) > 1 and roots[0] != top:
        raise UserError(f"--dataset={dataset}: holds several data sets ({', '.join(roots)}), name one of them")
    return roots[0]


def _names_in(dataset: str, folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"--dataset={dataset}: cannot list {folder} ({error.strerror})") from error


def _read_split(dataset: str, root: str, split: str, problems: list[str]) -> list[_Labels]:
    """The labels of a split's images; what is wrong with a file goes to `problems`."""
    folder = os.path.join(root, "Annotations")
    found = []
    for name in _names_of_split(dataset, root, split):
        name = _without_suffix(folder, name)
        try:
            found.append(_read_annotation(os.path.join(folder, f"{name}.xml"), name, problems))
        except UserError as error:
            problems.append(str(error))
    return found


def _without_suffix(annotations: str, name: str) -> str:
    """`a` for `a.jpg`, as some tools write it into a split's file, unless `a.jpg.xml` is there."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in IMAGE_SUFFIXES and not os.path.exists(os.path.join(annotations, f"{name}.xml")):
        return stem
    return name


def _names_of_split(dataset: str, root: str, split: str) -> list[str]:
    folder = os.path.join(root, "ImageSets", "Main")
    path = os.path.join(folder, f"{split}.txt")
    if not os.path.isfile(path):
        files = (name for name in _names_in(dataset, folder) if name.endswith(".txt") and not name.startswith("."))
        # "cat_train.txt" of VOC lists an object's presence, not a split.
        there = [name[:-4] for name in files if "_" not in name]
        raise UserError(f"--dataset={dataset}: no split {split!r}, found in {folder}: {', '.join(there) or 'nothing'}")
    names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not names:
        raise UserError(f"--dataset={dataset}: the {split} split is empty ({path} names no image)")
    return names


def _images_by_name(dataset: str, folder: str) -> dict[str, str]:
    """The paths of all images by their names without a suffix."""
    files: dict[str, str] = {}
    for file in _names_in(dataset, folder):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in IMAGE_SUFFIXES:
            files.setdefault(stem, os.path.join(folder, file))
    return files


def _about_clipped(split: str, found: list[_Labels]) -> tuple[str, ...]:
    """A line about boxes that were cut to their images, if any were."""
    files = [labels for labels in found if labels.clipped]
    if not files:
        return ()
    boxes = sum(labels.clipped for labels in files)
    names = some_of(repr(labels.name) for labels in files)
    return (
        f"{boxes} box(es) of the {split} split leave their images by up to {_SLACK} pixels and are clipped, in"
        f" {len(files)} file(s): {names}",
    )


# ------------------------------------------------------------------------------------------------------------- XML


@dataclasses.dataclass(frozen=True)
class _Labels:
    """What an annotation file says: per object its class, its box `(x0, y0, x1, y1)` and whether it is difficult."""

    path: str
    name: str
    height: int
    width: int
    objects: list[str]
    boxes: list[tuple[float, ...]]
    difficult: list[bool]
    clipped: int  # boxes that left the image a little

    def annotation(self, rank: dict[str, int]) -> Annotation:
        """With classes as their places in `rank`."""
        boxes = np.array(self.boxes, np.float32).reshape(-1, 4)
        labels = np.array([rank[label] for label in self.objects], np.int32)
        return Annotation(self.name, self.height, self.width, boxes, labels, np.array(self.difficult, bool))


def _read_annotation(path: str, name: str, problems: list[str]) -> _Labels:
    """Reads an annotation file; what is wrong with single objects goes to `problems`.

    Raises:
      UserError: the file as a whole is of no use.
    """
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
    objects, boxes, difficult, clipped = [], [], [], 0
    for item in root.iterfind("object"):
        label = (item.findtext("name") or "").strip()
        try:
            if not label:
                raise UserError(f"{path}: an <object> has no <name>")
            box, is_clipped = _read_box(item, label, height, width, path)
        except UserError as error:
            problems.append(str(error))
            continue
        objects.append(label)
        boxes.append(box)
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
        clipped += is_clipped
    return _Labels(path, name, height, width, objects, boxes, difficult, clipped)


def _read_box(
    item: ElementTree.Element, label: str, height: int, width: int, path: str
) -> tuple[tuple[float, ...], bool]:
    """A box on the continuous plane, and whether it had to be clipped to the image."""
    xmin, ymin, xmax, ymax = corners = [_number(item, f"bndbox/{corner}", path) for corner in _CORNERS]
    shown = ", ".join(f"{corner}={value:g}" for corner, value in zip(_CORNERS, corners))
    if not (xmin <= xmax and ymin <= ymax):
        raise UserError(f"{path}: the box of a {label!r} is inside out ({shown})")
    outside = max(1 - xmin, 1 - ymin, xmax - width, ymax - height)
    # Tools that count pixels from 0, or draw a little over the edge, are clipped, not refused.
    if outside > _SLACK:
        raise UserError(f"{path}: the box of a {label!r} ({shown}) leaves the image of {width} x {height} pixels")
    x0, y0 = min(max(xmin - 1, 0), width - 1), min(max(ymin - 1, 0), height - 1)
    return (x0, y0, min(max(xmax, 1), width), min(max(ymax, 1), height)), outside > 0


def _number(element: ElementTree.Element, where: str, path: str) -> float:
    text = element.findtext(where)
    with contextlib.suppress(ValueError):
        if text is not None and np.isfinite(float(text)):
            return float(text)
    raise UserError(f"{path}: wanted a number in <{where.replace('/', '><')}>, found {text!r}")
