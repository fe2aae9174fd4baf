"""A picture of what a detector found."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from instcls_tf.data.decoding import decode_image
from instcls_tf.detection.annotations import DetectionSource
from instcls_tf.detection.metrics import Detections
from instcls_tf.report.figures import add_legend, new_figure, save_figure

# Scores of the focal loss stay low in a short schedule; below this, most boxes are second guesses.
SHOWN_SCORE = 0.3
_COLUMNS = 4  # images per row


def draw_detections(path: str, source: DetectionSource, found: list[Detections]) -> None:
    """Writes a PNG of up to 2 x 4 images, evenly spread over a split.

    Args:
      path: the file.
      source: the split.
      found: what was found in each of its images; scores above `SHOWN_SCORE` are drawn in their class's colour, the
        objects themselves in dashed white.
    """
    count = min(2 * _COLUMNS, len(source.annotations))
    chosen = np.unique(np.linspace(0, len(source.annotations) - 1, count).astype(int))
    rows = -(-len(chosen) // _COLUMNS)
    from matplotlib.patches import Rectangle

    figure = new_figure(3.2 * _COLUMNS, 2.5 * rows + 0.4, layout=None)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    read = source.reader()
    for axes, index in zip(grid.flat, chosen):
        annotation = source.annotations[index]
        axes.imshow(decode_image(read(index), os.fsencode(annotation.name), reading=source.reading).numpy())
        for box in annotation.boxes:
            _draw_box(axes, box, "white", "--")
        for box, score, label in zip(*found[index]):
            if score > SHOWN_SCORE:
                _draw_box(axes, box, f"C{label}", "-")
    for axes in grid.flat:
        axes.axis("off")
    drawn = [Rectangle((0, 0), 1, 1, fill=False, color=f"C{label}") for label in range(len(source.class_names))]
    dashed = Rectangle((0, 0), 1, 1, facecolor="grey", edgecolor="white", linestyle="--")
    add_legend(figure, [dashed, *drawn], ["labelled", *source.class_names], loc="upper center", ncols=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    save_figure(path, figure, dpi=80)


def _draw_box(axes: Any, box: np.ndarray, colour: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, linestyle=style, linewidth=1.3))
