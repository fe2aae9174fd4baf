"""Pictures of a run's class weights: Fig. 4's histograms, and the images that they find alike or unlike all others."""

from __future__ import annotations

import os

import numpy as np

from instcls_tf.data import pipeline
from instcls_tf.data.labelled import take
from instcls_tf.data.source import Source
from instcls_tf.evaluation.similarity import Similarities, similarities_of_run
from instcls_tf.evaluation.weight_index import WeightNeighbours, weight_neighbours_of_run
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.report.figures import new_figure, save_figure

_PICTURED = 10
_PIXELS = 96


def similarities_with_picture(workdir: str, data_dir: str | None, instances: int) -> Answer:
    """`similarities_of_run` and its `step`, to be drawn into `WORKDIR/similarity.png`; all workers together."""
    summaries, cosines, step = similarities_of_run(workdir, data_dir, instances)
    path = os.path.join(workdir, "similarity.png")
    return Answer({**summaries, "step": step}, picture=Picture(path, lambda path: draw_histograms(path, cosines)))


def draw_histograms(path: str, cosines: dict[str, Similarities]) -> None:
    """Writes one histogram per initialisation to a PNG file: cosines to the own class weight and to single others."""
    figure = new_figure(3.2 * len(cosines), 3.2)
    grid = figure.subplots(1, len(cosines), squeeze=False)
    for axes, (name, values) in zip(grid[0], cosines.items()):
        both = np.concatenate([values.intra, values.inter_sample])
        bins = np.linspace(both.min() - 1e-3, max(both.max(), both.min() + 1e-3) + 1e-3, 60)
        axes.hist(values.inter_sample, bins, density=True, alpha=0.6, color="tab:grey", label="other instances")
        axes.hist(values.intra, bins, density=True, alpha=0.6, color="tab:blue", label="own instance")
        gap = values.summary()["gap"]
        axes.set(title=f"{name}, gap {gap:.1%}", xlabel="cosine of view and class weight", yticks=[])
    grid[0, 0].legend(fontsize="small")
    save_figure(path, figure)


def index_with_picture(workdir: str, data_dir: str | None, threshold: float, listed: int) -> Answer:
    """`weight_neighbours_of_run` and its `step`, to be drawn into `WORKDIR/similarity_index.png`; all together."""
    neighbours = weight_neighbours_of_run(workdir, data_dir, threshold, listed)
    path = os.path.join(workdir, "similarity_index.png")
    result = {**neighbours.summary(listed), "step": neighbours.step}
    return Answer(result, picture=Picture(path, lambda path: draw_index(path, neighbours)))


def draw_index(path: str, neighbours: WeightNeighbours) -> None:
    """Writes the most similar pairs (one above the other) and, below them, the outliers to a PNG file."""
    pairs, outliers = neighbours.pairs[:_PICTURED], neighbours.outliers[:_PICTURED]
    shown = _images(neighbours.source, sorted({*(i for pair in pairs for i in pair), *outliers}))
    rows = {"alike": [i for i, _ in pairs], "": [j for _, j in pairs], "outliers": outliers}
    figure = new_figure(_PICTURED, 3.2)
    grid = figure.subplots(3, _PICTURED)
    for axes_row, (title, ids) in zip(grid, rows.items()):
        axes_row[0].set_title(title, loc="left")
        for column, axes in enumerate(axes_row):
            axes.axis("off")
            if column < len(ids):
                axes.imshow(shown[ids[column]])
    save_figure(path, figure)


def _images(source: Source, ids: list[int]) -> dict[int, np.ndarray]:
    """Some images of a source by their ids."""
    batches = pipeline.inference_batches(take(source, np.array(ids)), image_size=_PIXELS, batch_size=len(ids))
    ((images, places, _),) = batches
    # One batch in the order of `ids`; an image that cannot be read stays black.
    return dict(zip(ids, images.numpy() * (places.numpy() >= 0)[:, None, None, None]))
