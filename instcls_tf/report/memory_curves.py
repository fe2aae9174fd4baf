"""Memory per worker against the number of classes, as a picture and a table: the paper's Fig. 3."""

from __future__ import annotations

from typing import Callable, NamedTuple

import numpy as np

from instcls_tf.report.answer import GIGABYTE
from instcls_tf.report.figures import new_figure, save_figure


class Curve(NamedTuple):
    """One design."""

    label: str
    peak: Callable[[int], int]  # bytes per worker, from N
    largest: int  # the largest N within the (last) limit
    measured: tuple[tuple[int, int], ...] = ()  # (N, bytes per worker) found by experiment


def draw_memory(path: str, curves: list[Curve], limits: list[int], title: str) -> None:
    """Writes a PNG file.

    Args:
      path: the file.
      curves: the designs.
      limits: memory limits per worker, in bytes, as horizontal lines.
      title: above the picture.

    Raises:
      UserError: the file cannot be written.
    """
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    largest = max(max(1, curve.largest) for curve in curves)
    instances = np.unique(np.geomspace(max(1, largest // 1000), 2 * largest, 200).astype(np.int64)).tolist()
    for curve, colour in zip(curves, ("tab:orange", "tab:blue")):
        label = f"{curve.label}: {curve.largest:,}" if curve.largest else f"{curve.label}: none"
        axes.plot(instances, [curve.peak(n) / GIGABYTE for n in instances], color=colour, label=label)
        if curve.measured:
            found = np.array(curve.measured, dtype=float)
            axes.plot(found[:, 0], found[:, 1] / GIGABYTE, "o", color=colour, label=f"{curve.label}, measured")
        elif curve.largest:
            axes.plot([curve.largest], [curve.peak(curve.largest) / GIGABYTE], "o", color=colour)
    for limit in limits:
        axes.axhline(limit / GIGABYTE, color="grey", linestyle="--", linewidth=0.8)
    top = 1.6 * max(limits) / GIGABYTE
    axes.set(xscale="log", xlabel="classes N", ylabel="GB per worker", ylim=(0, top), title=title)
    axes.legend(loc="upper left")
    save_figure(path, figure)
