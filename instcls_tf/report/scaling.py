"""Seconds per step and memory per worker against the number of classes, as a picture."""

from __future__ import annotations

import numpy as np

from instcls_tf.report.answer import GIGABYTE
from instcls_tf.report.figures import new_figure, save_figure


def measured_of(points: list[dict]) -> list[dict]:
    """Those that fitted into the memory."""
    return [point for point in points if point["seconds_per_step"] is not None]


def draw_scaling(path: str, result: dict) -> None:
    """Writes a PNG file.

    Args:
      path: the file.
      result: of `benchmark.scaling.measure_scaling`.

    Raises:
      UserError: the file cannot be written.
    """
    points = measured_of(result["points"])
    instances = np.array([point["num_instances"] for point in points])
    figure = new_figure(10, 4.2)
    time, memory = figure.subplots(1, 2)
    time.plot(instances, [point["seconds_per_step"] for point in points], "o", label="measured")
    slope = result["seconds_per_million_classes"] or 0.0
    time.plot(instances, slope * instances / 1e6, color="grey", label=f"{slope:.2f} s per million classes")
    time.set(ylabel="seconds per step", title=f"{result['workers']} workers, B = {result['batch_rows']}")
    memory.plot(instances, [point["peak_bytes"] / GIGABYTE for point in points], "o", label="measured")
    memory.plot(instances, [point["planned_bytes"] / GIGABYTE for point in points], color="grey", label="planned")
    memory.set(ylabel="GB per worker", title=f"D = {result['embedding_size']}")
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel="classes N")
        axes.legend()
    save_figure(path, figure)
