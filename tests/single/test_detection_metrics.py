"""Average precision against cases computed by hand, and against pycocotools where the definitions coincide."""

from __future__ import annotations

import numpy as np
import pytest

from instcls_tf.detection.annotations import Annotation
from instcls_tf.detection.metrics import (
    OVERLAPS,
    Detections,
    average_precisions,
    coco_precisions,
    overlaps,
    voc07_precisions,
)

SQUARE = (0, 0, 10, 10)
HALF = (0, 0, 10, 5)  # overlaps SQUARE by exactly 0.5
MOST = (0, 0, 10, 8)  # by 0.8


def truth(*boxes, labels=None, difficult=None) -> Annotation:
    count = len(boxes)
    labels = np.array(labels if labels is not None else [0] * count, np.int32)
    difficult = np.array(difficult if difficult is not None else [0] * count, bool)
    return Annotation("image", 100, 100, np.array(boxes, np.float32).reshape(-1, 4), labels, difficult)


def found(*scored, labels=None) -> Detections:
    boxes = np.array([box for box, _ in scored], np.float64).reshape(-1, 4)
    labels = np.array(labels if labels is not None else [0] * len(scored), int)
    return Detections(boxes, np.array([score for _, score in scored], np.float64), labels)


def away(index: int, box=SQUARE) -> tuple:
    """The box at another place."""
    return box[0] + 20 * index, box[1], box[2] + 20 * index, box[3]


def at_half(table: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in table[0]]


def test_overlap_is_that_of_inclusive_pixels():
    # Pixels 1..10 and 6..15 of a row: 5 shared, 15 in all, as the devkit's "+ 1" has it.
    np.testing.assert_allclose(overlaps(np.array([0, 0, 10, 1]), np.array([[5, 0, 15, 1], [20, 0, 30, 1]])), [1 / 3, 0])


def test_right_wrong_right_of_two():
    """Precision 1 up to recall 1/2, then 2/3: 6 of 11 recalls are at most 1/2, 51 of COCO's 101."""
    truths = (truth(SQUARE, away(1)),)
    seen = [found((SQUARE, 0.9), (away(3), 0.8), (away(1), 0.7))]
    assert at_half(voc07_precisions(truths, seen, 1)) == [round((6 + 5 * 2 / 3) / 11, 6)]
    assert at_half(coco_precisions(truths, seen, 1)) == [round((51 + 50 * 2 / 3) / 101, 6)]


@pytest.mark.parametrize(("right", "reached"), [(2, 3), (3, 3), (4, 5), (6, 6), (7, 7), (8, 9), (10, 11)])
def test_recalls_are_the_published_evaluators(right, reached):
    """Of 10 objects, 3, 6 and 7 found ones stay a last bit below the recalls that add up from tenths."""
    truths = (truth(*(away(index) for index in range(10))),)
    seen = [found(*((away(index), 0.9) for index in range(right)))]
    in_sums_of_tenths = sum(recall <= right / 10 for recall in np.arange(0.0, 1.1, 0.1))
    assert in_sums_of_tenths == reached
    assert at_half(voc07_precisions(truths, seen, 1)) == [round(reached / 11, 6)]


def test_a_second_detection_of_an_object_is_wrong():
    truths, seen = (truth(SQUARE, away(1)),), [found((SQUARE, 0.9), (MOST, 0.8), (away(1), 0.7))]
    for metric in (voc07_precisions, coco_precisions):
        assert (
            metric(truths, seen, 1)[0, 0]
            == metric(truths, [found((SQUARE, 0.9), (away(3), 0.8), (away(1), 0.7))], 1)[0, 0]
        )


def test_difficult_objects_do_not_count():
    """Three detections of a difficult object, one of them half off it: neither right nor wrong for VOC."""
    truths = (truth(SQUARE, away(1), difficult=[0, 1]),)
    seen = [found((away(1), 0.9), (away(1, MOST), 0.8), (SQUARE, 0.7))]
    assert at_half(voc07_precisions(truths, seen, 1)) == [1.0]
    # COCO lets one detection take an ignored object; a missed one costs nothing in either.
    assert at_half(coco_precisions(truths, [found((away(1), 0.9), (SQUARE, 0.7))], 1)) == [1.0]
    for metric in (voc07_precisions, coco_precisions):
        assert at_half(metric(truths, [found((SQUARE, 0.7))], 1)) == [1.0]


def test_the_threshold_itself():
    """VOC asks for more than the threshold, COCO for at least that."""
    truths, seen = (truth(SQUARE),), [found((HALF, 0.9))]
    assert at_half(voc07_precisions(truths, seen, 1)) == [0.0]
    assert at_half(coco_precisions(truths, seen, 1)) == [1.0]


def test_ap_is_the_mean_over_overlaps_and_classes():
    """0.8 is above 6 of 10 overlaps, and at a seventh; a class without objects is left out, one that was missed not."""
    truths, seen = (
        (truth(SQUARE, away(1), labels=[0, 2]), truth()),
        [found((MOST, 0.9)), found((SQUARE, 0.1), labels=[1])],
    )
    result = average_precisions(truths, seen, 3)
    assert [result[name] for name in ("voc07_AP50", "voc07_AP75", "AP50", "AP75")] == pytest.approx([0.5] * 4)
    # COCO counts the overlap of just 0.8, VOC does not.
    assert result["voc07_AP"] == pytest.approx(0.3) and result["AP"] == pytest.approx(0.35)


def test_nothing_found():
    result = average_precisions((truth(SQUARE),), [found()], 1)
    assert set(result) == {"AP", "AP50", "AP75", "voc07_AP", "voc07_AP50", "voc07_AP75"} and not any(result.values())


def test_equals_pycocotools_at_its_recalls():
    """Where no detection overlaps two objects, and none overlaps by exactly a threshold, only the recalls differ."""
    random = np.random.default_rng(0)
    truths, seen = [], []
    for _ in range(30):
        places = random.permutation(5)[: random.integers(1, 5)]
        labels = random.integers(0, 3, len(places))
        truths.append(truth(*[away(place) for place in places], labels=labels))
        guesses = [(away(place), label) for place in range(5) for label in range(3) if random.random() < 0.5]
        guesses += [(away(place), label) for place, label in zip(places, labels) if random.random() < 0.7]
        boxes = [np.array(box) + random.uniform(-1.5, 1.5, 4) for box, _ in guesses]
        scores = random.permutation(1000)[: len(boxes)] / 1000 + random.random()
        seen.append(Detections(np.array(boxes).reshape(-1, 4), scores, np.array([label for _, label in guesses], int)))
    ours = voc07_precisions(tuple(truths), seen, 3)
    theirs = coco_precisions(tuple(truths), seen, 3, recalls=np.arange(0.0, 1.1, 0.1))
    assert ours.shape == (len(OVERLAPS), 3) and 0.2 < ours[0].mean() < 0.95 and ours[-1].mean() < ours[0].mean() / 2
    np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert not np.allclose(ours, coco_precisions(tuple(truths), seen, 3), atol=1e-3)
