"""One picture of a run: its loss curve, and queries with their nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from instcls_tf.classifier.expected_loss import expected_losses
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.files import is_there
from instcls_tf.report.figures import add_legend, new_figure, save_figure
from instcls_tf.run.metrics import metrics_path, read_metrics


def load_metrics(workdir: str, after_epoch: int = 0) -> dict[str, np.ndarray]:
    """The columns of a run's `metrics.jsonl` that all its lines have; none if it has logged nothing.

    Args:
      workdir: the run's folder.
      after_epoch: lines of so many first epochs are left out, such as those of `--contrast_epochs`.
    """
    lines = read_metrics(workdir) if is_there(metrics_path(workdir)) else []
    lines = [line for line in lines if not after_epoch or line.get("epoch", np.inf) > after_epoch]
    names = [name for name in (lines[0] if lines else ()) if all(name in line for line in lines)]
    return {name: np.array([line[name] for line in lines]) for name in names}


def draw_run(
    path: str,
    curves: dict[str, dict[str, np.ndarray]],
    configs: dict[str, PretrainConfig],
    num_instances: int,
    queries: np.ndarray,
    neighbours: np.ndarray,
    is_same_class: np.ndarray,
) -> None:
    """Writes loss curves (left) and a grid of queries with their nearest neighbours (right) to a PNG file.

    Args:
      path: the file.
      curves: metrics by the name of a run.
      configs: their recipes, for the part of the loss that is Eq. 1's and its marks, `classifier.expected_loss`.
      num_instances: N.
      queries: `[Q, S, S, 3]` uint8.
      neighbours: `[Q, K, S, S, 3]` uint8, the nearest first.
      is_same_class: `[Q, K]` bool: framed green where true, red elsewhere.
    """
    figure = new_figure(13, 5.2)
    parts: Any = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    left, right = parts
    _draw_curves(left.subplots(), curves, configs, num_instances)
    _draw_neighbours(right, queries, neighbours, is_same_class)
    save_figure(path, figure)


def _draw_curves(
    axes: Any, curves: dict[str, dict[str, np.ndarray]], configs: dict[str, PretrainConfig], num_instances: int
) -> None:
    lines = [axes.plot(curves[name]["epoch"], _loss(curves[name], configs[name]))[0] for name in curves]
    methods = sorted({configs[name].method for name in curves})
    title, names = f"{num_instances} images, {', '.join(methods)}", [*curves]
    if methods == [INSTANCE]:
        title = f"{num_instances}-way instance classification"
        marks = {tuple(_expected(configs[name], num_instances).values()) for name in curves}
        if len(marks) == 1:
            names += ["expected start (Gaussian class weights)", "floor of Eq. 1"]
            for value, style in zip(marks.pop(), (":", "--")):
                lines.append(axes.axhline(value, color="grey", linestyle=style))
    axes.set(xlabel="epoch", ylabel="loss", title=title, ylim=(0, None))
    add_legend(axes, lines, names)


def _loss(metrics: dict[str, np.ndarray], config: PretrainConfig) -> np.ndarray:
    """The classification's own, where NT-Xent is added to it."""
    if config.batch_contrast and "contrast_loss" in metrics:
        return metrics["loss"] - config.batch_contrast * metrics["contrast_loss"]
    return metrics["loss"]


def _expected(config: PretrainConfig, num_instances: int) -> dict[str, float]:
    return expected_losses(num_instances, config.embedding_size, config.temperature, config.sampled_classes)


def _draw_neighbours(figure: Any, queries: np.ndarray, neighbours: np.ndarray, is_same_class: np.ndarray) -> None:
    grid = figure.subplots(len(queries), 1 + neighbours.shape[1], squeeze=False)
    figure.suptitle("held-out queries (left) and their nearest training images")
    for row, query in enumerate(queries):
        _draw_image(grid[row, 0], query, "black")
        for column, image in enumerate(neighbours[row], start=1):
            _draw_image(grid[row, column], image, "tab:green" if is_same_class[row, column - 1] else "tab:red")


def _draw_image(axes: Any, image: np.ndarray, colour: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.5)
