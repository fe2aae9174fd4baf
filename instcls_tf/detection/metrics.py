"""Average precision of detections, as COCO counts it (pycocotools) and as PASCAL VOC 2007 did.

The published VOC tables give AP, AP50 and AP75 by the metric of 2007 (as Detectron2's evaluator computes it):
precision at 11 recalls, averaged over the classes, and for AP over the overlaps .50, .55, ... .95 as well. COCO's
differs in three ways: 101 recalls instead of 11, a detection may take its second best object if another detection has
the best one, and an overlap of just the threshold counts. Objects marked difficult are in neither: to find one is
neither right nor wrong, to miss one costs nothing.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from instcls_tf.detection.annotations import Annotation

OVERLAPS = np.arange(50, 100, 5) / 100
# As the published evaluators count them: the fourth, seventh and eighth lie a last bit above .3, .6 and .7, so that 3
# objects found of 10 do not reach the fourth.
_VOC07_RECALLS = np.arange(0.0, 1.1, 0.1)


class Detections(NamedTuple):
    """What was found in one image: `boxes` `[n, 4]` (as in `Annotation`), `scores` `[n]`, `labels` int `[n]`."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def average_precisions(truths: tuple[Annotation, ...], found: list[Detections], num_classes: int) -> dict[str, float]:
    """Both metrics, as fractions.

    Args:
      truths: the images.
      found: what was found in each of them.
      num_classes: C. Classes without an object that counts are left out of the means.

    Returns:
      `AP`, `AP50`, `AP75` (COCO) and `voc07_AP`, `voc07_AP50`, `voc07_AP75`.
    """
    at_50, at_75 = np.searchsorted(OVERLAPS, [0.5, 0.75])
    result = {}
    by_metric = {
        "": coco_precisions(truths, found, num_classes),
        "voc07_": voc07_precisions(truths, found, num_classes),
    }
    for prefix, table in by_metric.items():  # [overlaps, classes]
        values = table.mean(), table[at_50].mean(), table[at_75].mean()
        result.update({prefix + name: float(value) for name, value in zip(("AP", "AP50", "AP75"), values)})
    return result


# --------------------------------------------------------------------------------------------------------- VOC 2007


def voc07_precisions(truths: tuple[Annotation, ...], found: list[Detections], num_classes: int) -> np.ndarray:
    """The 11-point average precision, `[overlaps, classes that have an object]`."""
    columns = []
    for label in range(num_classes):
        counting = sum(int((~truth.difficult[truth.labels == label]).sum()) for truth in truths)
        if counting:
            matches = _best_matches(truths, found, label)
            columns.append([_average_precision(*_outcomes(matches, least), counting) for least in OVERLAPS])
    return np.array(columns).T


class _Matches(NamedTuple):
    """All detections of a class, best score first, each with the object it overlaps most (whoever else found it)."""

    overlap: np.ndarray  # [n]
    object_id: np.ndarray  # [n]
    is_difficult: np.ndarray  # [n]


def _best_matches(truths: tuple[Annotation, ...], found: list[Detections], label: int) -> _Matches:
    rows, first_id = [], 0
    for truth, detections in zip(truths, found):
        objects, difficult = truth.boxes[truth.labels == label], truth.difficult[truth.labels == label]
        mine = detections.labels == label
        for box, score in zip(detections.boxes[mine], detections.scores[mine]):
            overlap = overlaps(box, objects)
            best = int(np.argmax(overlap)) if len(objects) else -1
            rows.append((score, overlap[best], first_id + best, difficult[best]) if len(objects) else (score, 0, -1, 0))
        first_id += len(objects)
    table = np.array(rows, np.float64).reshape(-1, 4)
    table = table[np.argsort(-table[:, 0], kind="stable")]
    return _Matches(table[:, 1], table[:, 2].astype(int), table[:, 3].astype(bool))


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box `[4]` with others `[n, 4]`."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return shared / (np.prod(box[2:] - box[:2]) + areas - shared)


def _outcomes(matches: _Matches, least_overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong detections `[n]` bool: the first to find an object is right, later ones and the rest wrong."""
    hits = matches.overlap > least_overlap
    ignored = hits & matches.is_difficult
    right = np.zeros(len(hits), bool)
    places = np.flatnonzero(hits & ~ignored)
    _, first = np.unique(matches.object_id[places], return_index=True)
    right[places[first]] = True
    return right, ~right & ~ignored


def _average_precision(right: np.ndarray, wrong: np.ndarray, counting: int) -> float:
    """The mean, over 11 recalls, of the best precision at that recall or a higher one."""
    true, false = np.cumsum(right), np.cumsum(wrong)
    recall, precision = true / counting, true / np.maximum(true + false, 1)
    return float(np.mean([precision[recall >= least].max(initial=0.0) for least in _VOC07_RECALLS]))


# ------------------------------------------------------------------------------------------------------------- COCO


class _Evaluation(COCOeval):
    """COCOeval, which takes `iscrowd` for `ignore` and then measures overlaps in another way; here they are apart."""

    def _prepare(self) -> None:
        super()._prepare()
        for truths in self._gts.values():
            for truth in truths:
                truth["ignore"] = truth["difficult"]


def coco_precisions(
    truths: tuple[Annotation, ...],
    found: list[Detections],
    num_classes: int,
    recalls: np.ndarray | None = None,
) -> np.ndarray:
    """COCO's average precision over objects of all sizes, `[overlaps, classes that have an object]`.

    Args:
      truths, found, num_classes: as in `average_precisions`.
      recalls: where precision is read; None for COCO's 101.
    """
    counting = {int(label) for truth in truths for label in truth.labels[~truth.difficult]}
    rows = [
        [image, *_corner_and_sides(box), score, label]
        for image, detections in enumerate(found, start=1)
        for box, score, label in zip(*detections)
    ]
    if not rows:  # pycocotools does not know what to do with nothing
        return np.zeros([len(OVERLAPS), len(counting)])
    with contextlib.redirect_stdout(io.StringIO()):  # it talks on standard output, which is for the result
        truth_set = _coco_of(truths, num_classes)
        evaluation = _Evaluation(truth_set, truth_set.loadRes(np.array(rows, np.float64)), "bbox")
        if recalls is not None:
            evaluation.params.recThrs = recalls
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # [overlaps, recalls, classes, areas, numbers of detections]
    return precision[:, :, sorted(counting), 0, -1].mean(axis=1)


def _coco_of(truths: tuple[Annotation, ...], num_classes: int) -> COCO:
    boxes: list[dict[str, Any]] = [
        {
            "image_id": image,
            "bbox": list(_corner_and_sides(box)),
            "category_id": int(label),
            "difficult": int(difficult),
        }
        for image, truth in enumerate(truths, start=1)
        for box, label, difficult in zip(truth.boxes, truth.labels, truth.difficult)
    ]
    for number, box in enumerate(boxes, start=1):  # an id of 0 would mean "not matched"
        box.update(id=number, iscrowd=0, area=box["bbox"][2] * box["bbox"][3])
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(1, len(truths) + 1)],
        "categories": [{"id": label} for label in range(num_classes)],
        "annotations": boxes,
    }
    coco.createIndex()
    return coco


def _corner_and_sides(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1 - x0, y1 - y0
