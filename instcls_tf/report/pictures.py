"""One picture of a run: its loss curve, and queries with their nearest neighbours."""

from __future__ import annotations

import json
import os

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from instcls_tf import thermometer
from instcls_tf.config import PretrainConfig


def load_metrics(workdir: str) -> dict[str, np.ndarray]:
    """The columns of a run's `metrics.jsonl` that all its lines have."""
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    names = [name for name in (lines[0] if lines else ()) if all(name in line for line in lines)]
    return {name: np.array([line[name] for line in lines]) for name in names}


def draw_run(
    path: str,
    curves: dict[str, dict[str, np.ndarray]],
    config: PretrainConfig,
    num_instances: int,
    queries: np.ndarray,
    neighbours: np.ndarray,
    is_same_class: np.ndarray,
) -> None:
    """Writes loss curves (left) and a grid of queries with their nearest neighbours (right) to a PNG file.

    Args:
      path: the file.
      curves: metrics by the name of a run.
      config: the recipe, for the thermometer's two marks.
      num_instances: N.
      queries: `[Q, S, S, 3]` uint8.
      neighbours: `[Q, K, S, S, 3]` uint8, the nearest first.
      is_same_class: `[Q, K]` bool: framed green where true, red elsewhere.
    """
    figure = plt.figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    _draw_curves(left.subplots(), curves, config, num_instances)
    _draw_neighbours(right, queries, neighbours, is_same_class)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_curves(axes, curves, config: PretrainConfig, num_instances: int) -> None:
    sizes = (num_instances, config.embedding_size, config.temperature)
    for name, metrics in curves.items():
        axes.plot(metrics["epoch"], metrics["loss"], label=name)
    axes.axhline(
        thermometer.expected_start(*sizes), color="grey", linestyle=":", label="expected start (Gaussian rows)"
    )
    axes.axhline(thermometer.expected_floor(*sizes), color="grey", linestyle="--", label="floor of Eq. 1")
    axes.set(xlabel="epoch", ylabel="loss", title=f"{num_instances}-way instance classification", ylim=(0, None))
    axes.legend()


def _draw_neighbours(figure, queries: np.ndarray, neighbours: np.ndarray, is_same_class: np.ndarray) -> None:
    grid = figure.subplots(len(queries), 1 + neighbours.shape[1], squeeze=False)
    figure.suptitle("held-out queries (left) and their nearest training images")
    for row, query in enumerate(queries):
        _draw_image(grid[row, 0], query, "black")
        for column, image in enumerate(neighbours[row], start=1):
            _draw_image(grid[row, column], image, "tab:green" if is_same_class[row, column - 1] else "tab:red")


def _draw_image(axes, image: np.ndarray, colour: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.5)
