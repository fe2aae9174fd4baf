"""Image files of a detection data set: all that their headers tell is said at once, when the data set is opened."""

from __future__ import annotations

import os
import socket

import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.data.decoding import Reading
from instcls_tf.detection.batches import inference_batches
from instcls_tf.detection.finetune import _readable
from instcls_tf.detection.image_files import problems_of_images
from instcls_tf.detection.sources import open_detection_data
from instcls_tf.errors import UserError
from tests.voc import write_annotation, write_voc


@pytest.fixture
def root(tmp_path):
    write_voc(tmp_path, {"trainval": 2, "test": 4})
    return tmp_path


def refusal(root, **options) -> str:
    with pytest.raises(UserError) as error:
        open_detection_data(f"folder:{root}", "trainval", "test", **options)
    return str(error.value)


def turned(path, orientation: int) -> None:
    """Stores an image lying down, with EXIF by which it is shown as it was."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}[orientation]
    Image.open(path).transpose(stored).save(path, quality=95, exif=exif)


def replace_by_socket(path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # A socket's path may not be long.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


ODD = {
    "a link in a circle": (lambda path: path.symlink_to(path.name), "cannot read this image (Too many levels"),
    "a link through a file": (lambda path: path.symlink_to("test_1.jpg/x.jpg"), "cannot read this image (Not a dir"),
    "a broken link": (lambda path: path.symlink_to("nowhere.jpg"), "cannot read this image (No such file"),
    "a link to too long a name": (lambda path: path.symlink_to("x" * 300), "cannot read this image (File name"),
    "a folder": (lambda path: path.mkdir(), "not a regular file"),
    "a pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "a socket": (replace_by_socket, "not a regular file"),
    "nothing in it": (lambda path: path.touch(), "cannot read this image (empty)"),
    "text": (lambda path: path.write_text("no picture"), "cannot read this image (not an image)"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_is_named_with_what_it_is(root, kind):
    make, reason = ODD[kind]
    path = root / "JPEGImages" / "test_0.jpg"
    path.unlink()
    make(path)
    assert refusal(root).startswith(f"{path}: {reason}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(root):
    path = root / "JPEGImages" / "test_0.jpg"
    path.chmod(0)
    assert refusal(root) == f"{path}: cannot read this image (Permission denied)"


def test_all_images_that_are_wrong_are_said_at_once_whatever_their_split(root):
    images = root / "JPEGImages"
    (images / "trainval_1.jpg").write_bytes((images / "trainval_1.jpg").read_bytes()[:30])
    write_annotation(root / "Annotations" / "test_0.xml", [("red", 1, 1, 40, 30, 0)], 50, 36)
    (images / "test_2.jpg").unlink()
    (images / "test_2.jpg").mkdir()
    # As it is stored, not as it is shown.
    turned(images / "test_3.jpg", 6)
    write_annotation(root / "Annotations" / "test_3.xml", [("red", 1, 1, 30, 40, 0)], 36, 48)
    first, *others = refusal(root).removeprefix(f"--dataset=folder:{root}: 4 things are wrong in it: ").split("; ")
    assert first.startswith(f"{images}/trainval_1.jpg: cannot read this image (")
    assert others == [
        f"{images}/test_0.jpg: has 48 x 36 pixels, but its annotation says 50 x 36",
        f"{images}/test_2.jpg: not a regular file",
        f"{images}/test_3.jpg: is shown with 48 x 36 pixels by its EXIF orientation, 6, but its annotation says"
        " 36 x 48: wanted size and boxes of the image as it is shown",
    ]


def test_what_no_split_names_may_be_anything(root):
    os.symlink("self.jpg", root / "JPEGImages" / "self.jpg")
    (root / "JPEGImages" / "folder.jpg").mkdir()
    assert len(open_detection_data(f"folder:{root}", "trainval", "test")[1].annotations) == 4


def test_images_of_too_many_pixels(root):
    said = refusal(root, reading=Reading(max_pixels=1000))
    assert "6 things are wrong in it" in said
    assert said.count("cannot read this image (48 x 36 pixels, more than --max_pixels=1000)") == 6


def test_headers_are_enough(tmp_path, monkeypatch):
    """Pixels that are nothing but noise are not looked at; a PNG's chunks are, as EXIF may follow the pixels."""
    Image.new("RGB", (60, 40)).save(tmp_path / "x.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "x.jpg")
    jpeg = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(jpeg[: jpeg.index(b"\xff\xda") + 20])
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert problems_of_images([(str(tmp_path / f"x.{kind}"), 40, 60) for kind in ("png", "jpg")], Reading()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.mkdir(), "{path}; Is a directory"),
        (lambda path: path.symlink_to(path.name), "{path}; Too many levels of symbolic links"),
        (lambda path: None, "{path}; No such file or directory"),
        (lambda path: path.touch(), "cannot decode the image test_0 (empty)"),
        (
            lambda path: Image.new("L", (9, 7)).save(path),
            "image test_0 has 9 x 7 pixels, but its annotation says 48 x 36",
        ),
    ],
    ids=["folder", "circle", "gone", "empty", "another size"],
)
def test_a_file_that_changes_while_it_is_read(root, change, sentence):
    _, test = open_detection_data(f"folder:{root}", "trainval", "test")
    path = root / "JPEGImages" / "test_0.jpg"
    path.unlink()
    change(path)
    batches = inference_batches(test, image_size=64, batch_size=1, begin=0, end=1)
    with pytest.raises(UserError) as error:
        next(_readable(batches, "x"))
    assert str(error.value) == f"--dataset=x: {sentence.format(path=path)}"
    assert isinstance(error.value.__cause__, tf.errors.OpError)
