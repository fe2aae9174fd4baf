"""Accuracy against minutes: the mean of each recipe of the ledger at each length that it was run for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from instcls_tf.claims.ledger import KNN, Minutes, Scale
from instcls_tf.claims.page import cpu_seconds_of, short_name
from instcls_tf.claims.runs import Run
from instcls_tf.report.figures import add_legend, new_figure, save_figure

_COLOURS = 10  # in matplotlib's cycle


class Point(NamedTuple):
    """The runs of one recipe and length, of all seeds that have not diverged."""

    epochs: int
    minutes: list[float]  # CPU time of one core
    accuracies: list[float]  # 20-NN, fractions
    processors: list[str]


def points_of(flags: dict[str, Any], scale: Scale, results: dict[str, dict[str, Any]]) -> list[Point]:
    """What was measured of a recipe, the shortest runs first.

    Args:
      flags: added to those of the scale.
      scale: of the runs.
      results: lines of `results.jsonl` by their keys.
    """
    recipe = Run(scale.name, {**scale.flags, **flags}, 1, 0).recipe
    lines = [line for line in results.values() if line["scale"] == scale.name and line["recipe"] == recipe]
    points = []
    for epochs in sorted({line["epochs"] for line in lines}):
        made = [line for line in lines if line["epochs"] == epochs and line[KNN] is not None]
        if made:
            minutes = [cpu_seconds_of(line) / 60 for line in made]
            points.append(
                Point(epochs, minutes, [line[KNN] for line in made], [short_name(line["processor"]) for line in made])
            )
    return points


def draw_minutes(path: str, about: Minutes, scale: Scale, results: dict[str, dict[str, Any]]) -> None:
    """Writes the picture to a PNG file: means as lines, single runs as dots.

    Raises:
      UserError: the file cannot be written.
    """
    figure = new_figure(9, 6)
    axes: Any = figure.subplots()
    lines: list[Any] = []
    names, processors = [], set()
    for name, flags in about.series.items():
        points = points_of(flags, scale, results)
        if not points:
            continue
        means = [100 * np.mean(point.accuracies) for point in points]
        marker = "o" if len(lines) < _COLOURS else "s"
        (line,) = axes.plot([np.mean(point.minutes) for point in points], means, marker=marker, markersize=4)
        for point in points:
            dots = 100 * np.array(point.accuracies)
            axes.plot(point.minutes, dots, ".", color=line.get_color(), alpha=0.4, markersize=4)
            processors.update(point.processors)
        lines.append(line)
        names.append(f"{name} ({', '.join(str(len(point.accuracies)) for point in points)})")
    axes.set_xscale("log")
    ticks = [tick for tick in (3, 5, 8, 15, 30, 90) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(
        xlabel=f"minutes of one core ({' or '.join(sorted(processors))})",
        ylabel="20-NN on the test images, %",
        title=about.title,
    )
    axes.grid(alpha=0.3)
    title = "method (seeds at each length)"
    add_legend(figure, lines, names, title=title, fontsize="small", loc="outside lower center", ncols=2)
    save_figure(path, figure)
