"""Seconds per step and memory per worker as N grows: `benchmark classifier` for one N after the other."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np

from instcls_tf.benchmark.sizes import ClassifierBenchmark, misfit
from instcls_tf.checks import require_value
from instcls_tf.distributed import mpirun
from instcls_tf.files import refuse_unwritable
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.report.scaling import draw_scaling, measured_of

_SECONDS = 1800  # of one N


def measure_scaling(numbers: list[int], num_workers: int, settings: ClassifierBenchmark, output: str | None) -> Answer:
    """Measures each N in processes of its own.

    Args:
      numbers: the N.
      num_workers: T.
      settings: everything but N.
      output: PNG file of the picture, or None.

    Returns:
      `points`: for each N the figures of `measure_classifier`, None where it does not fit; of those that do,
      `seconds_per_million_classes`: the slope of a line through the origin; `largest_deviation_from_line` of a point,
      as a fraction of it; `largest_deviation_from_plan` of the memory, as a fraction of the plan.

    Raises:
      UserError: a size cannot be measured.
      RuntimeError: a measurement failed.
    """
    require_value("workers", num_workers, num_workers >= 1, "at least 1")
    for number in numbers:
        dataclasses.replace(settings, num_instances=number).validate(num_workers)
    if output:
        refuse_unwritable(output)
    points = [_measure(dataclasses.replace(settings, num_instances=n), num_workers) for n in sorted(numbers)]
    result = {
        "workers": num_workers,
        "batch_rows": settings.batch_rows,
        "embedding_size": settings.embedding_size,
        "points": points,
        **_summary(measured_of(points)),
    }
    picture = Picture(output, lambda path: draw_scaling(path, result)) if output else None
    return Answer(result, format_table(result), picture=picture)


def _summary(points: list[dict]) -> dict[str, float | None]:
    names = ("seconds_per_million_classes", "largest_deviation_from_line", "largest_deviation_from_plan")
    if not points:
        return dict.fromkeys(names)
    instances, seconds = (np.array([point[key] for point in points]) for key in ("num_instances", "seconds_per_step"))
    slope = float(np.sum(seconds) / np.sum(instances))
    of_line = float(np.max(np.abs(seconds / (slope * instances) - 1)))
    of_plan = max(abs(point["peak_bytes"] / point["planned_bytes"] - 1) for point in points)
    return dict(zip(names, (slope * 1e6, of_line, of_plan)))


def format_table(result: dict) -> str:
    """The result of `measure_scaling` as a Markdown table."""
    lines = [
        "| N | seconds per step | seconds per step and million classes | MB per worker | planned |",
        "|---|---|---|---|---|",
    ]
    for point in result["points"]:
        n, seconds, planned = point["num_instances"], point["seconds_per_step"], point["planned_bytes"] / 1e6
        if seconds is None:
            lines.append(f"| {n:,} | {misfit(point['needed_bytes'], point['free_bytes'])} | | | {planned:,.0f} |")
            continue
        measured = point["peak_bytes"] / 1e6
        lines.append(f"| {n:,} | {seconds:.3f} | {seconds / n * 1e6:.2f} | {measured:,.0f} | {planned:,.0f} |")
    return "\n".join(lines)


def _measure(settings: ClassifierBenchmark, num_workers: int) -> dict:
    command = [sys.executable, "-m", "scripts.benchmark", "classifier", *_flags(settings)]
    if num_workers > 1:
        launcher = os.path.join(os.path.dirname(sys.executable), "horovodrun")
        command = [launcher, "-np", str(num_workers), *command]
    environment = {**os.environ, **mpirun.PLACES_AS_TOLD}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    answers = re.findall(r'\{"workers".*?\}', finished.stdout)
    if finished.returncode or len(answers) != 1:
        said = (finished.stdout + finished.stderr)[-2000:]
        raise RuntimeError(f"N = {settings.num_instances} could not be measured: {said}")
    point = json.loads(answers[0])
    seconds = point["seconds_per_step"]
    told = misfit(point["needed_bytes"], point["free_bytes"]) if seconds is None else f"{seconds:.3f} s per step"
    print(f"N = {point['num_instances']}: {told}", file=sys.stderr)
    return point


def _flags(settings: ClassifierBenchmark) -> list[str]:
    values = dataclasses.asdict(settings)
    return [f"--{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in values.items()]
