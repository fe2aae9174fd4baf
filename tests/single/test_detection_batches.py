"""Squares, boxes and flips; the shares of all workers make up the batch."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.detection.batches import inference_batches, training_batches
from instcls_tf.detection.sources import open_detection_data
from tests.single.test_image_files import turned
from tests.voc import COLOURS, write_annotation, write_voc


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, {"trainval": 5, "test": 1})
    write_annotation(root / "Annotations" / "trainval_3.xml", [], 48, 36)
    return open_detection_data(f"folder:{root}", "trainval", "test")[0]


def joined(source, workers: int, steps: int = 4) -> list[tuple[np.ndarray, ...]]:
    """The global batches, of shares side by side."""
    shares = [
        training_batches(
            source, image_size=64, batch_size=3, steps=steps, seed=7, rank=rank, num_workers=workers
        ).as_numpy_iterator()
        for rank in range(workers)
    ]
    return [tuple(map(np.concatenate, zip(*parts))) for parts in zip(*shares)]


def colour_in(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The mean colour inside a box, its blurred border apart."""
    x0, y0, x1, y1 = np.round(box + [3, 3, -3, -3]).astype(int)
    return image[y0:y1, x0:x1].reshape(-1, 3).mean(axis=0)


def test_boxes_follow_their_objects_through_squeezing_and_flips(source):
    seen = flipped = 0
    plain = next(iter(inference_batches(source, image_size=64, batch_size=5, begin=0, end=5)))
    for images, boxes, labels in joined(source, 1):
        assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
        for image, image_boxes, image_labels in zip(images, boxes, labels):
            flipped += not any(np.array_equal(image, other) for other in plain[0].numpy())
            for box, label in zip(image_boxes, image_labels):
                if label < 0:
                    assert (box == -1).all()
                    continue
                wanted = COLOURS[source.class_names[label]]
                np.testing.assert_allclose(colour_in(image, box), wanted, atol=25)
                seen += 1
    assert seen > 10 and 2 < flipped < 10


def test_a_side_is_scaled_by_its_own_factor(source):
    first = source.annotations[0]
    _, boxes, _ = next(iter(inference_batches(source, image_size=64, batch_size=2, begin=0, end=5)))
    np.testing.assert_allclose(boxes[0, 0], first.boxes[0] * [64 / 48, 64 / 36, 64 / 48, 64 / 36], rtol=1e-5)


@pytest.mark.parametrize("workers", [2, 3])
def test_shares_of_workers_make_up_the_batch(source, workers):
    for alone, together in zip(joined(source, 1), joined(source, workers)):
        for one, other in zip(alone, together):
            np.testing.assert_array_equal(one, other)


def test_every_epoch_shows_every_image(source):
    objects = [tuple(sorted(map(tuple, image.boxes))) for image in source.annotations]
    seen = [tuple(labels[labels >= 0]) for _, _, batch in joined(source, 1, steps=5) for labels in batch]
    assert len(seen) == 15  # three epochs of five images in full batches of three
    wanted = sorted(tuple(image.labels) for image in source.annotations)
    assert len(set(objects)) == 5 and all(sorted(seen[start : start + 5]) == wanted for start in (0, 5, 10))


@pytest.fixture
def small(tmp_path):
    write_voc(tmp_path, {"trainval": 1, "test": 1})
    return tmp_path


@pytest.mark.parametrize(("name", "shown"), [("é".encode(), "é"), (b"caf\xe9", "caf?")])
def test_names_in_any_encoding(small, name, shown):
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (small / folder / f"trainval_0{suffix}").rename(small / folder / f"{os.fsdecode(name)}{suffix}")
    (small / "ImageSets" / "Main" / "trainval.txt").write_bytes(name + b"\n")
    source, _ = open_detection_data(f"folder:{small}", "trainval", "test")
    ((images, *_),) = inference_batches(source, image_size=64, batch_size=1, begin=0, end=1)
    assert images.shape == [1, 64, 64, 3]
    (small / "JPEGImages" / f"{os.fsdecode(name)}.jpg").write_bytes(b"")
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        next(iter(inference_batches(source, image_size=64, batch_size=1, begin=0, end=1)))
    assert f"[cannot decode the image {shown} (empty)]" in error.value.message


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_boxes_refer_to_the_image_as_it_is_shown(small, orientation):
    name = f"folder:{small}"
    wanted = next(iter(inference_batches(open_detection_data(name, "trainval", "test")[0], **FIRST)))
    turned(small / "JPEGImages" / "trainval_0.jpg", orientation)
    source, _ = open_detection_data(name, "trainval", "test")
    images, boxes, labels = next(iter(inference_batches(source, **FIRST)))
    assert np.abs(images.numpy().astype(int) - wanted[0].numpy()).mean() < 6
    np.testing.assert_array_equal(boxes, wanted[1])
    np.testing.assert_allclose(
        colour_in(images[0].numpy(), boxes[0, 0].numpy()), COLOURS[source.class_names[labels[0, 0]]], atol=25
    )


FIRST = {"image_size": 64, "batch_size": 1, "begin": 0, "end": 1}
