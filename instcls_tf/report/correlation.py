"""Fig. 1b of a run: recognising instances against recognising categories, from epoch to epoch."""

from __future__ import annotations

import json
import os

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from instcls_tf.errors import UserError


def accuracies_of_run(workdir: str) -> dict[str, list[float]]:
    """What a run logged at each online measurement.

    Args:
      workdir: of a run with `--online_knn_every`.

    Returns:
      `epoch`; `instance_top1`, the mean over the log lines since the measurement before; `knn_top1`.

    Raises:
      UserError: there is no run, or it measured fewer than three times.
    """
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        with open(path) as file:
            lines = [json.loads(line) for line in file if line.endswith("\n")]
    except OSError as error:
        raise UserError(f"--workdir={workdir}: holds no run ({path}: {error.strerror})") from error
    columns, since = {"epoch": [], "instance_top1": [], "knn_top1": []}, []
    for line in lines:
        since.append(line["instance_top1"])
        if "knn_top1" in line:
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
    figure, axes = plt.subplots(figsize=(5.2, 4), layout="constrained")
    axes.plot(columns["instance_top1"], columns["knn_top1"], color="lightgrey", zorder=1)
    points = axes.scatter(columns["instance_top1"], columns["knn_top1"], c=columns["epoch"], zorder=2)
    figure.colorbar(points, label="epoch")
    title = "constant" if coefficient is None else f"correlation {coefficient:.2f}"
    axes.set(xlabel="instance top-1 (training views)", ylabel="semantic top-1 (20-NN)", title=title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
