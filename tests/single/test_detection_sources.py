"""Reading data sets in Pascal VOC layout and TFDS's form of them; mistakes in them are answered with one sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from instcls_tf.data.image_suffixes import IMAGE_SUFFIXES
from instcls_tf.detection.sources import open_detection_data
from instcls_tf.errors import UserError
from tests.voc import write_annotation, write_voc


@pytest.fixture
def root(tmp_path):
    """A data set one folder below `tmp_path`, as downloads often have it."""
    write_voc(tmp_path / "inner", {"trainval": 3, "test": 2})
    return tmp_path / "inner"


def open_below(tmp_path, train_split="trainval", test_split="test"):
    return open_detection_data(f"folder:{tmp_path}", train_split, test_split)


def test_boxes_lie_on_the_continuous_plane(tmp_path, root):
    items = [("red", 1, 2, 10, 20, 0), ("green", 0, 3.5, 48, 36, 1), ("red", 7, 7, 7, 7, 0)]
    write_annotation(root / "Annotations" / "test_0.xml", items, 48, 36)
    train, test = open_below(tmp_path)
    assert train.class_names == test.class_names == ("green", "red")
    assert [len(source.annotations) for source in (train, test)] == [3, 2]
    first = test.annotations[0]
    assert (first.name, first.height, first.width) == ("test_0", 36, 48)
    # VOC counts from 1 and includes the last pixel: one pixel is one wide. A tool that counts from 0 is clipped.
    np.testing.assert_array_equal(first.boxes, [[0, 1, 10, 20], [0, 2.5, 48, 36], [6, 6, 7, 7]])
    assert first.labels.tolist() == [1, 0, 1] and first.difficult.tolist() == [False, True, False]
    assert test.paths == (str(root / "JPEGImages" / "test_0.jpg"), str(root / "JPEGImages" / "test_1.jpg"))


def test_the_layout_may_lie_at_the_path_itself(root):
    train, _ = open_below(root)
    assert len(train.annotations) == 3


def test_an_image_without_objects_is_background(tmp_path, root):
    write_annotation(root / "Annotations" / "trainval_0.xml", [], 48, 36)
    train, _ = open_below(tmp_path)
    assert train.annotations[0].boxes.shape == (0, 4)


ANNOTATION = "Annotations/test_0.xml"
MISTAKES = {
    "not XML": (
        {ANNOTATION: "labels: none"},
        "{root}/Annotations/test_0.xml: not XML (syntax error: line 1, column 0)",
    ),
    "no encoding": (
        {ANNOTATION: '<?xml version="1.0" encoding="none"?><annotation/>'},
        "{root}/Annotations/test_0.xml: not XML (unknown encoding: none)",
    ),
    "a page": (
        {ANNOTATION: "<html></html>"},
        "{root}/Annotations/test_0.xml: not an annotation in Pascal VOC's form, its outermost element is <html>",
    ),
    "no annotation": (
        {ANNOTATION: None},
        "{root}/Annotations/test_0.xml: cannot read the labels of image 'test_0' (No such file or directory)",
    ),
    "outside": (
        {ANNOTATION: [("red", 5, 5, 51, 9, 0)]},
        "{root}/Annotations/test_0.xml: the box of a 'red' (xmin=5, ymin=5, xmax=51, ymax=9) leaves the image of"
        " 48 x 36 pixels",
    ),
    "negative": (
        {ANNOTATION: [("red", -3, 5, 9, 9, 0)]},
        "{root}/Annotations/test_0.xml: the box of a 'red' (xmin=-3, ymin=5, xmax=9, ymax=9) leaves the image of"
        " 48 x 36 pixels",
    ),
    "inside out": (
        {ANNOTATION: [("red", 9, 5, 4, 9, 0)]},
        "{root}/Annotations/test_0.xml: the box of a 'red' is inside out (xmin=9, ymin=5, xmax=4, ymax=9)",
    ),
    "not a number": (
        {ANNOTATION: [("red", "left", 5, 4, 9, 0)]},
        "{root}/Annotations/test_0.xml: wanted a number in <bndbox><xmin>, found 'left'",
    ),
    "no name": ({ANNOTATION: [("", 1, 5, 4, 9, 0)]}, "{root}/Annotations/test_0.xml: an <object> has no <name>"),
    "no size": (
        {ANNOTATION: "<annotation></annotation>"},
        "{root}/Annotations/test_0.xml: wanted a number in <size><height>, found None",
    ),
    "unknown class": (
        {ANNOTATION: [("blue", 1, 5, 4, 9, 0)]},
        "{root}/Annotations/test_0.xml: class 'blue' of the test split is not in the split that is trained on",
    ),
    "empty split": (
        {"ImageSets/Main/test.txt": "\n"},
        "--dataset=folder:{top}: the test split is empty ({root}/ImageSets/Main/test.txt names no image)",
    ),
    "no split": (
        {"ImageSets/Main/test.txt": None, "ImageSets/Main/red_test.txt": "test_0 1\n"},
        "--dataset=folder:{top}: no split 'test', found in {root}/ImageSets/Main: trainval",
    ),
    "no image": (
        {"JPEGImages/test_1.jpg": None},
        f"{{root}}/JPEGImages/test_1: no such image ({', '.join(IMAGE_SUFFIXES)})",
    ),
    "only difficult objects": (
        {ANNOTATION: [("red", 1, 5, 4, 9, 1)], "ImageSets/Main/test.txt": "test_0\n"},
        "--dataset=folder:{top}: no image of the test split has a labelled object that counts",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_data(tmp_path, root, mistake):
    changes, sentence = MISTAKES[mistake]
    for name, content in changes.items():
        if content is None:
            (root / name).unlink()
        elif isinstance(content, str):
            (root / name).write_text(content)
        else:
            write_annotation(root / name, content, 48, 36)
    with pytest.raises(UserError) as error:
        open_below(tmp_path)
    assert str(error.value) == sentence.format(top=tmp_path, root=root)


def test_all_that_is_wrong_is_said_at_once(tmp_path, root):
    annotations = root / "Annotations"
    write_annotation(annotations / "trainval_0.xml", [("red", 5, 5, 60, 9, 0), ("red", 9, 5, 4, 9, 0)], 48, 36)
    (annotations / "trainval_1.xml").write_text("labels: none")
    (annotations / "test_0.xml").unlink()
    # Whether its class is unknown cannot be said while a file of the split that is trained on cannot be read.
    write_annotation(annotations / "test_1.xml", [("blue", 1, 5, 4, 9, 0)], 48, 36)
    (root / "JPEGImages" / "trainval_2.jpg").unlink()
    with pytest.raises(UserError) as error:
        open_below(tmp_path)
    assert str(error.value) == (
        f"--dataset=folder:{tmp_path}: 5 things are wrong in it: "
        f"{annotations}/trainval_0.xml: the box of a 'red' (xmin=5, ymin=5, xmax=60, ymax=9) leaves the image of 48 x"
        f" 36 pixels; "
        f"{annotations}/trainval_0.xml: the box of a 'red' is inside out (xmin=9, ymin=5, xmax=4, ymax=9); "
        f"{annotations}/trainval_1.xml: not XML (syntax error: line 1, column 0); "
        f"{annotations}/test_0.xml: cannot read the labels of image 'test_0' (No such file or directory); "
        f"{root}/JPEGImages/trainval_2: no such image ({', '.join(IMAGE_SUFFIXES)})"
    )


def test_ten_of_many_wrong_files_are_named(tmp_path):
    write_voc(tmp_path, {"trainval": 25, "test": 2})
    for index in range(25):
        write_annotation(tmp_path / "Annotations" / f"trainval_{index}.xml", [("red", 5, 5, 60, 9, 0)], 48, 36)
    with pytest.raises(UserError) as error:
        open_below(tmp_path)
    assert "25 things are wrong in it: " in str(error.value) and str(error.value).endswith("; …")
    assert str(error.value).count(".xml: the box of a 'red'") == 10


def test_unknown_classes_are_said_at_once(tmp_path, root):
    for index in range(2):
        items = [(label, 1, 5, 4, 9, 0) for label in ("blue", "red", "blue", "pink")]
        write_annotation(root / "Annotations" / f"test_{index}.xml", items, 48, 36)
    with pytest.raises(UserError) as error:
        open_below(tmp_path)
    assert "4 things are wrong in it: " in str(error.value)
    assert str(error.value).count("'blue' of the test split is not in the split that is trained on") == 2


# What a box of a 48 x 36 image is on its continuous plane.
LITTLE_OUTSIDE = {
    (5, 5, 49, 9): (4, 4, 48, 9),
    (5, 5, 50, 38): (4, 4, 48, 36),
    (0, 0, 10, 10): (0, 0, 10, 10),
    (-1, -1, 10, 10): (0, 0, 10, 10),
    (0, 3, 0, 9): (0, 2, 1, 9),
    (49, 3, 49, 9): (47, 2, 48, 9),
    (5, 37, 9, 38): (4, 35, 9, 36),
}


@pytest.mark.parametrize("corners", LITTLE_OUTSIDE)
def test_boxes_a_pixel_or_two_outside_are_clipped_and_listed(tmp_path, root, corners):
    items = [("red", *corners, 0), ("red", 1, 1, 48, 36, 0), ("green", *corners, 0)]
    write_annotation(root / "Annotations" / "test_0.xml", items, 48, 36)
    train, test = open_below(tmp_path)
    inside = LITTLE_OUTSIDE[corners]
    np.testing.assert_array_equal(test.annotations[0].boxes, [inside, [0, 0, 48, 36], inside])
    assert train.notes == ()
    assert test.notes == (
        "2 box(es) of the test split leave their images by up to 2 pixels and are clipped, in 1 file(s): 'test_0'",
    )


@pytest.mark.parametrize("corners", [(5, 5, 51, 9), (-2, 5, 9, 9), (5, -2, 9, 9), (5, 5, 9, 39), (51, 5, 51, 9)])
def test_boxes_further_outside_are_refused(tmp_path, root, corners):
    write_annotation(root / "Annotations" / "test_0.xml", [("red", *corners, 0)], 48, 36)
    with pytest.raises(UserError, match="leaves the image of 48 x 36 pixels"):
        open_below(tmp_path)


SPLIT = "ImageSets/Main/test.txt"


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbftest_0\r\ntest_1\r\n",
        b"test_0.jpg\ntest_1.JPG\n",
        b"\xef\xbb\xbf test_0.jpeg \n\n\ttest_1",
        b"test_0.png\ntest_1\n",
    ],
)
def test_split_files_of_other_systems_and_tools_are_read(tmp_path, root, content):
    expected = open_below(tmp_path)[1]
    (root / SPLIT).write_bytes(content)
    _, test = open_below(tmp_path)
    assert [image.name for image in test.annotations] == ["test_0", "test_1"]
    assert test.paths == expected.paths and test.digest() == expected.digest()


def test_a_name_that_is_there_with_its_suffix_is_that_one(tmp_path, root):
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (root / folder / f"test_0.{suffix}").rename(root / folder / f"test_0.jpg.{suffix}")
    (root / SPLIT).write_text("test_0.jpg\ntest_1\n")
    _, test = open_below(tmp_path)
    assert [image.name for image in test.annotations] == ["test_0.jpg", "test_1"]


def test_a_split_file_in_utf_16_is_refused(tmp_path, root):
    (root / SPLIT).write_bytes("test_0\r\n".encode("utf-16"))
    with pytest.raises(UserError) as error:
        open_below(tmp_path)
    assert str(error.value) == f"{root}/{SPLIT}: is in UTF-16, wanted UTF-8"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotations_with_a_byte_order_mark_are_read(tmp_path, root, encoding):
    expected = open_below(tmp_path)[1].digest()
    path = root / ANNOTATION
    path.write_text(path.read_text(), encoding=encoding)
    assert open_below(tmp_path)[1].digest() == expected


def test_annotations_with_elements_nested_deeply_are_answered(tmp_path, root):
    path = root / ANNOTATION
    path.write_text(path.read_text().replace("</size>", "</size>" + "<a>" * 50_000 + "</a>" * 50_000))
    assert len(open_below(tmp_path)[1].annotations) == 2


def test_folders_that_programs_made_hold_no_data_set(tmp_path, root):
    for name in ("__MACOSX", ".Trash-1000"):
        write_voc(tmp_path / name, {"trainval": 1, "test": 1})
    os.symlink("loop", tmp_path / "loop")
    assert len(open_below(tmp_path)[0].annotations) == 3


def test_a_path_without_its_prefix(tmp_path, root):
    with pytest.raises(UserError) as error:
        open_detection_data(str(tmp_path), "trainval", "test")
    assert str(error.value) == f"--dataset={tmp_path}: did you mean folder:{tmp_path}?"


def test_folders_that_are_no_data_set(tmp_path, root):
    for path, sentence in [
        (tmp_path / "none", "no such folder"),
        (root / "Annotations", "not in Pascal VOC layout, wanted Annotations/, ImageSets/Main/, JPEGImages/ there or"),
    ]:
        with pytest.raises(UserError, match="--dataset=folder:") as error:
            open_below(path)
        assert sentence in str(error.value)
    write_voc(tmp_path / "other", {"trainval": 1, "test": 1})
    with pytest.raises(UserError) as error:
        open_below(tmp_path)
    assert "holds several data sets" in str(error.value)


def test_reading_a_folder_does_not_import_tensorflow(tmp_path, root):
    code = (
        "import sys; from instcls_tf.detection.sources import open_detection_data\n"
        f"open_detection_data('folder:{tmp_path}', 'trainval', 'test'); print('tensorflow' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_tfds_holds_the_same(tmp_path, root):
    import tensorflow_datasets as tfds

    exif = Image.Exif()
    exif[0x0112] = 6  # One is stored lying down, and shown as its annotation says.
    path = root / "JPEGImages" / "test_0.jpg"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    folders = open_below(tmp_path)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "objects": tfds.features.Sequence(
                {
                    "label": tfds.features.ClassLabel(names=["green", "red"]),
                    "bbox": tfds.features.BBoxFeature(),
                    "is_difficult": np.bool_,
                }
            ),
        }
    )
    # As TFDS's voc does: VOC's own pixel numbers, divided by the image's size.
    examples = {
        split: [
            {
                "image": path,
                "objects": [
                    {
                        "label": int(label),
                        "bbox": tfds.features.BBox((y0 + 1) / 36, (x0 + 1) / 48, y1 / 36, x1 / 48),
                        "is_difficult": bool(difficult),
                    }
                    for (x0, y0, x1, y1), label, difficult in zip(image.boxes, image.labels, image.difficult)
                ],
            }
            for path, image in zip(source.paths, source.annotations)
        ]
        for split, source in zip(("train", "test"), folders)
    }
    splits = {split: enumerate(images) for split, images in examples.items()}
    tfds.dataset_builders.store_as_tfds_dataset("tiny_voc", "1.0.0", features, splits, data_dir=tmp_path / "tfds")
    streams = open_detection_data("tiny_voc", "train", "test", str(tmp_path / "tfds"))
    for folder, stream in zip(folders, streams):
        assert folder.class_names == stream.class_names
        read = folder.reader()
        files = {read(index).numpy(): image for index, image in enumerate(folder.annotations)}
        for index, image in enumerate(stream.annotations):
            same = files[stream.reader()(index).numpy()]
            assert (image.height, image.width) == (same.height, same.width)
            np.testing.assert_allclose(image.boxes, same.boxes, atol=1e-4)
            assert image.labels.tolist() == same.labels.tolist()
    with pytest.raises(UserError) as error:
        open_detection_data("tiny_voc", "trainval", "test", str(tmp_path / "tfds"))
    assert str(error.value) == "--dataset=tiny_voc: no split 'validation', wanted one of test, train"


def test_another_data_set_at_the_same_place_has_another_digest(tmp_path, root):
    before, _ = open_below(tmp_path)
    assert open_below(tmp_path)[0].digest() == before.digest()
    write_annotation(root / "Annotations" / "trainval_0.xml", [("red", 1, 2, 10, 20, 0)], 48, 36)
    assert open_below(tmp_path)[0].digest() != before.digest()
