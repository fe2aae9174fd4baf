"""The largest N that fits a memory limit: this design against plain data parallelism (the paper's Fig. 3)."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from typing import Any, Callable, NamedTuple

from instcls_tf.benchmark.sizes import DATA_PARALLEL, DESIGNS, SHARDED
from instcls_tf.checks import require_value
from instcls_tf.config import STORAGE_DTYPES
from instcls_tf.distributed import cores, mpirun
from instcls_tf.distributed.memory import free_bytes
from instcls_tf.errors import UserError
from instcls_tf.files import refuse_unwritable
from instcls_tf.plan import classifier_bytes, planner
from instcls_tf.report.answer import GIGABYTE, Answer, Picture
from instcls_tf.report.memory_curves import Curve, draw_memory

# Bisection ends when the smallest N that does not fit is at most this factor above the largest that does.
_TOLERANCE = 1.05
# The first N tried is the planned one; a failure or a success moves the search by this factor.
_STRIDE = 1.1
_TRIAL_SECONDS = 900
# What a process has before its limit counts: Python, TensorFlow, Horovod.
_STARTED_BYTES = 0.8 * GIGABYTE
# Of an N that does not fit: now and then a process takes more than all others.
_TRIALS = 2


class Sizes(NamedTuple):
    """What the trials have in common."""

    num_workers: int  # T
    batch_rows: int  # B, of the global batch
    embedding_size: int  # D
    weights_dtype: str = "float32"  # of this design's class weights
    momentum_dtype: str = "float32"


def measure_memory(limits: list[float], sizes: Sizes, *, plain: bool = True, output: str | None = None) -> Answer:
    """Finds the largest N for each limit and both designs, by trials of one step each in processes of their own.

    Args:
      limits: memory per worker above that of the started process, in GB.
      sizes: of every trial.
      plain: whether plain data parallelism is tried as well.
      output: PNG file of the picture, or None.

    Returns:
      `limits`: for each limit the largest N (`sharded`, `data_parallel`) found, their `ratio` and the planned ones;
      `ratio`: the smallest of the ratios (both ratios with `plain` only).

    Raises:
      UserError: a value is out of range, a limit is more than is free, or too small for any N.
      RuntimeError: a trial failed for another reason than memory.
    """
    _check(limits, sizes)
    peaks = planned_peaks(sizes)
    if not plain:
        del peaks[DATA_PARALLEL]
    if output:
        refuse_unwritable(output)
    found = []
    for limit in limits:
        size = round(limit * GIGABYTE)
        row = {"memory_limit_gb": limit}
        for design, peak in peaks.items():
            planned = planner.largest_num_instances(peak, size, sizes.num_workers)

            def fits(n: int, design: str = design, size: int = size) -> bool:
                return any(_trial(design, n, sizes, size) for _ in range(_TRIALS))

            row[f"planned_{design}"] = planned
            row[design] = largest_that_fits(fits, max(planned, sizes.num_workers), sizes.num_workers)
            if not row[design]:
                raise UserError(f"--memory_limit={limit:g}: not even {sizes.num_workers} classes fit ({design})")
        if plain:
            row["ratio"] = row[SHARDED] / row[DATA_PARALLEL]
        found.append(row)
    result = {"workers": sizes.num_workers, **sizes._asdict(), "limits": found}
    del result["num_workers"]
    if plain:
        result["ratio"] = min(row["ratio"] for row in found)
    picture = Picture(output, lambda path: _draw(path, peaks, found, sizes)) if output else None
    return Answer(result, format_table(result), picture=picture)


def planned_peaks(sizes: Sizes) -> dict[str, Callable[[int], int]]:
    """The planned bytes of a worker as functions of N, classifiers alone."""
    common = (sizes.num_workers, sizes.batch_rows, sizes.embedding_size)
    kept: dict[str, Any] = {
        "weights_dtype": sizes.weights_dtype,
        "momentum_dtype": sizes.momentum_dtype,
        "threads": cores.threads_of_worker(sizes.num_workers),
    }
    return {
        DATA_PARALLEL: lambda n: sum(classifier_bytes.data_parallel_bytes(n, *common).values()),
        SHARDED: lambda n: classifier_bytes.peak_bytes(n, *common, 0, **kept),
    }


def largest_that_fits(fits: Callable[[int], bool], first: int, smallest: int) -> int:
    """Bisects for the largest N, to within 5 %.

    Args:
      fits: tries an N.
      first: the N to begin with.
      smallest: the smallest N that makes sense.

    Returns:
      An N that fits, while another at most 5 % above does not; 0 if not even `smallest` fits.
    """
    low, high, n = 0, math.inf, first
    while True:
        if fits(n):
            low = n
        else:
            high = n
        if high <= smallest:
            return 0
        if low and high <= max(low + 1, _TOLERANCE * low):
            return low
        if not low:
            n = max(smallest, int(high / _STRIDE))
        elif high == math.inf:
            n = math.ceil(low * _STRIDE)
        else:
            n = round(math.sqrt(low * high))


def format_table(result: dict) -> str:
    """The result of `measure_memory` as a Markdown table."""
    columns = [design for design in DESIGNS if all(design in row for row in result["limits"])]
    titles = ["GB per worker", *(f"{DESIGNS[design]} (planned)" for design in columns)]
    titles += ["ratio"] if len(columns) == 2 else []
    lines = [
        f"Largest N with {result['workers']} workers, {result['batch_rows']} rows, D = {result['embedding_size']},"
        f" class weights in {result['weights_dtype']}, their momentum in {result['momentum_dtype']}",
        "",
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
    ]
    for row in result["limits"]:
        cells = [f"{row['memory_limit_gb']:g}", *(f"{row[d]:,} ({row[f'planned_{d}']:,})" for d in columns)]
        cells += [f"{row['ratio']:.1f}"] if "ratio" in row else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _check(limits: list[float], sizes: Sizes) -> None:
    num_workers, batch_rows, embedding_size, *dtypes = sizes
    for limit in limits:
        require_value("memory_limit", f"{limit:g}", math.isfinite(limit) and limit > 0, "above 0, in GB")
    free = free_bytes()
    if free is not None and num_workers >= 1:
        # A trial that takes more is ended by the system, and nobody would know for which reason.
        most = (free / num_workers - _STARTED_BYTES) / GIGABYTE
        wanted = f"at most {most:.1f}, the GB that are free for each of {num_workers} worker(s) and its libraries"
        require_value("memory_limit", f"{max(limits):g}", max(limits) <= most, wanted)
    for name, value in (("workers", num_workers), ("embedding_size", embedding_size)):
        require_value(name, value, value >= 1, "at least 1")
    is_shared_out = batch_rows >= num_workers and batch_rows % num_workers == 0
    require_value("batch_rows", batch_rows, is_shared_out, f"a multiple of the {num_workers} workers")
    for name, dtype in zip(("weights", "momentum"), dtypes):
        require_value(f"class_{name}_dtype", dtype, dtype in STORAGE_DTYPES, "one of " + ", ".join(STORAGE_DTYPES))


def _trial(design: str, num_instances: int, sizes: Sizes, limit: int) -> bool:
    """Whether one step fits, in a process per worker."""
    num_workers, *rest = sizes
    arguments = map(str, (num_instances, *rest, limit))
    command = [sys.executable, "-m", "instcls_tf.benchmark.memory_trial", design, *arguments]
    if num_workers > 1:
        launcher = os.path.join(os.path.dirname(sys.executable), "horovodrun")
        command = [launcher, "-np", str(num_workers), *command]
    environment = {**os.environ, **mpirun.PLACES_AS_TOLD}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TRIAL_SECONDS)
    answers = [json.loads(text) for text in re.findall(r'\{"fits".*?\}', finished.stdout)]
    if not answers or (finished.returncode and all(answer["fits"] for answer in answers)):
        said = (finished.stdout + finished.stderr)[-2000:]
        raise RuntimeError(f"a trial of {design} with {num_instances} classes failed: {said}")
    fits = all(answer["fits"] for answer in answers)
    print(
        f"{limit / GIGABYTE:g} GB, {design}, N = {num_instances}: {'fits' if fits else 'too large'}",
        file=sys.stderr,
    )
    return fits


def _draw(output: str, peaks: dict[str, Callable[[int], int]], found: list[dict], sizes: Sizes) -> None:
    limits = [round(row["memory_limit_gb"] * GIGABYTE) for row in found]
    last = max(found, key=lambda row: row["memory_limit_gb"])
    curves = [
        Curve(label, peaks[design], last[design], tuple((row[design], size) for row, size in zip(found, limits)))
        for design, label in DESIGNS.items()
        if design in peaks
    ]
    sizes_text = f"{sizes.num_workers} workers, B = {sizes.batch_rows}, D = {sizes.embedding_size}"
    title = f"Largest N: {sizes_text} (lines: planned)"
    draw_memory(output, curves, limits, title)
