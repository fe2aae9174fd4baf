"""Fig. 1b of a run: recognising instances against recognising categories, from epoch to epoch."""

from __future__ import annotations

import math
import os

import numpy as np

from instcls_tf.errors import UserError
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.report.figures import new_figure, save_figure
from instcls_tf.run.metrics import read_metrics
from instcls_tf.run.workdir import load_run


def correlation_of_run(workdir: str) -> Answer:
    """Fig. 1b of a run, drawn into `WORKDIR/correlation.png`.

    Args:
      workdir: of a run with `--online_knn_every`.

    Returns:
      `correlation`, and the columns of `accuracies_of_run`.

    Raises:
      UserError: there is no run, or it measured fewer than three times.
    """
    columns = accuracies_of_run(workdir)
    picture = Picture(os.path.join(workdir, "correlation.png"), lambda path: draw_correlation(path, columns))
    return Answer({"correlation": correlation(columns), **columns}, picture=picture)


def accuracies_of_run(workdir: str) -> dict[str, list[float]]:
    """What a run logged at each online measurement.

    Args:
      workdir: of a run with `--online_knn_every`.

    Returns:
      `epoch`; `instance_top1`, the mean over the log lines since the measurement before; `knn_top1`.

    Raises:
      UserError: there is no run, or it measured fewer than three times.
    """
    columns: dict[str, list[float]] = {"epoch": [], "instance_top1": [], "knn_top1": []}
    since: list[float] = []
    # Before, it is the share of views that find their image among the batch: another quantity.
    lines, contrasts = read_metrics(workdir), load_run(workdir).contrast_epochs
    for line in lines:
        if line.get("epoch", math.inf) <= contrasts:
            continue
        if "instance_top1" in line:
            since.append(line["instance_top1"])
        if since and {"epoch", "knn_top1"} <= line.keys():
            for name, value in zip(columns, (line["epoch"], float(np.mean(since)), line["knn_top1"])):
                columns[name].append(value)
            since = []
    if len(columns["epoch"]) < 3:
        raise UserError(
            f"--workdir={workdir}: has {len(columns['epoch'])} measurements of nearest-neighbour accuracy, wanted at"
            f" least 3: pretrain with --online_knn_every=1"
        )
    return columns


def correlation(columns: dict[str, list[float]]) -> float | None:
    """Pearson's coefficient of instance and semantic accuracy; None if one of them never changes."""
    instance, semantic = np.array(columns["instance_top1"]), np.array(columns["knn_top1"])
    if instance.std() == 0 or semantic.std() == 0:
        return None
    return float(np.corrcoef(instance, semantic)[0, 1])


def draw_correlation(path: str, columns: dict[str, list[float]]) -> None:
    """Writes the picture to a PNG file: one point per measurement, coloured by its epoch."""
    coefficient = correlation(columns)
    figure = new_figure(5.2, 4)
    axes = figure.subplots()
    axes.plot(columns["instance_top1"], columns["knn_top1"], color="lightgrey", zorder=1)
    points = axes.scatter(columns["instance_top1"], columns["knn_top1"], c=columns["epoch"], zorder=2)
    figure.colorbar(points, label="epoch")
    title = "constant" if coefficient is None else f"correlation {coefficient:.2f}"
    axes.set(xlabel="instance top-1 (training views)", ylabel="semantic top-1 (20-NN)", title=title)
    save_figure(path, figure)
