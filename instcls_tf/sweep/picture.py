"""Accuracy against minutes: what online k-NN has measured on the way, mean and 95 % interval of each arm."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from instcls_tf.report.figures import add_legend, new_figure, save_figure
from instcls_tf.run.metrics import read_metrics
from instcls_tf.sweep.spec import Spec
from instcls_tf.sweep.summary import Arm, arms_of, mean_with_interval, stage_shown
from instcls_tf.sweep.trials import FINAL


class Curve(NamedTuple):
    """`[M]` each: means over the seeds, and halves of the 95 % intervals, 0 with a single seed."""

    minutes: np.ndarray
    accuracy: np.ndarray
    interval: np.ndarray


def curves_of(spec: Spec, results: list[dict]) -> dict[str, Curve]:
    """The curves of the arms whose best setting is known, by their names."""
    curves = ((arm.name, _curve(arm)) for arm in arms_of(spec, results))
    return {name: curve for name, curve in curves if curve is not None}


def _curve(arm: Arm) -> Curve | None:
    """Trials of one setting are measured after the same epochs, which take about the same minutes."""
    seeds = [_points(trial.folder, result) for trial, result in arm.trials.values()]
    shared = min(map(len, seeds), default=0)
    if not shared:
        return None
    points = np.array([one[:shared] for one in seeds])  # [seeds, M, 2]
    estimates = [mean_with_interval(list(points[:, place, 1])) for place in range(shared)]
    means, intervals = zip(*((estimate.mean, estimate.interval or 0.0) for estimate in estimates))
    return Curve(points[:, :, 0].mean(axis=0), np.array(means), np.array(intervals))


def _points(folder: str, result: dict[str, Any]) -> list[tuple[float, float]]:
    """`(minutes, accuracy)` of a trial, its end included."""
    lines = read_metrics(folder)
    points = [(line["seconds"] / 60, line["knn_top1"]) for line in lines if "knn_top1" in line]
    if lines and "knn_top1" not in lines[-1]:
        points.append((result["minutes"], result["accuracy"]))
    return points


def draw_curves(path: str, spec: Spec, results: list[dict]) -> None:
    """Writes the picture to a PNG file."""
    figure = new_figure(7, 4.5)
    axes: Any = figure.subplots()
    lines, names = [], []
    for name, curve in curves_of(spec, results).items():
        percent, interval = 100 * curve.accuracy, 100 * curve.interval
        (line,) = axes.plot(curve.minutes, percent, marker="o", markersize=3)
        axes.fill_between(curve.minutes, percent - interval, percent + interval, color=line.get_color(), alpha=0.2)
        lines.append(line)
        names.append(name)
    judged = "test split" if stage_shown(spec, results) == FINAL else "validation slice"
    axes.set(xlabel="minutes of training", ylabel=f"20-NN on the {judged}, %", xlim=(0, None))
    add_legend(axes, lines, names)
    save_figure(path, figure)
