"""What workers measure together: clocks, collectives, the workdir's file system, decoding. All workers call these."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable

import tensorflow as tf

from instcls_tf import files
from instcls_tf.benchmark import fitting
from instcls_tf.benchmark.input import decoding_rate
from instcls_tf.benchmark.step import less_memory, measure_parts, planned_memory
from instcls_tf.benchmark.timing import seconds_of
from instcls_tf.config import PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError, shown
from instcls_tf.pretraining import agreement

_ROUNDS = 5
_REPEATS = 3
# Messages, and the time from which one says something of the bandwidth: in seconds, and of one without a content.
_SMALLEST_BYTES, _LARGEST_BYTES = 2**17, 2**26
_LONG_ENOUGH, _TIMES_THE_LATENCY = 0.1, 5
_FILE_BYTES = 2**26
_DECODING_SECONDS = 2.0


def clock_skew() -> float:
    """Seconds between the workers' clocks, at most: the least of some rounds, all of which a late answer lengthens."""
    found = []
    for _ in range(_ROUNDS):
        collectives.barrier()
        times = workers.everybodys(time.time())
        found.append(max(times) - min(times))
    return min(found)


def collectives_between() -> dict[str, float]:
    """Latency (a sum of one number) and bandwidth (large sums and gathers) between all workers: medians.

    Messages grow until one takes long enough, so that a slow network is measured in seconds, and a fast one at all.
    """
    latency = seconds_of(_sum_of(4), _REPEATS)
    found, enough = {"latency_seconds": latency}, max(_LONG_ENOUGH, _TIMES_THE_LATENCY * latency)
    for name, make in (("sum", _sum_of), ("gather", _gather_of)):
        size = _SMALLEST_BYTES
        while (seconds := seconds_of(make(size), _REPEATS)) < enough and size < _LARGEST_BYTES:
            size *= 8
        found[f"{name}_bytes_per_second"] = size / seconds
    return found


def _sum_of(size: int) -> Callable[[], object]:
    """A sum over the workers of so many bytes."""
    values = tf.Variable(tf.zeros([size // 4]))

    @tf.function(autograph=False)
    def add() -> tf.Tensor:
        return tf.reduce_max(collectives.sum_over_workers(values.read_value(), f"doctor_sum_{size}"))

    return lambda: add().numpy()


def _gather_of(size: int) -> Callable[[], object]:
    """A gather whose result has so many bytes."""
    values = tf.Variable(tf.zeros([size // 4 // collectives.size()]))

    @tf.function(autograph=False)
    def gather() -> tf.Tensor:
        return tf.reduce_max(collectives.all_gather(values.read_value(), f"doctor_gather_{size}"))

    return lambda: gather().numpy()


def fit_of(config: PretrainConfig, num_instances: int) -> tuple[fitting.Fit, str]:
    """Whether a step of these flags fits into the memory that is free, and what would take less."""
    memory = planned_memory(config, num_instances)
    return fitting.look(sum(memory.values())), less_memory(config, num_instances, memory)


def step_of(config: PretrainConfig, num_instances: int) -> dict[str, float | None]:
    """Encoder, classifier and messages of a step of these flags, each alone, in seconds; None for what does not fit."""
    return measure_parts(config, num_instances, repeats=3)


def workdir(folder: str) -> dict[str, Any]:
    """Whether all workers see the same folder, and how fast rank 0 writes there and another worker reads.

    All stays as it is: the file is removed, and the folder, and those above it, that were not there.
    """
    made = files.missing_folders(folder)
    try:
        agreement.refuse_other_workdirs(folder)
    except UserError as error:
        return {"problem": str(error)}
    path = Path(folder, ".doctor")
    is_first, is_last = collectives.rank() == 0, collectives.rank() == collectives.size() - 1
    try:
        written = workers.all_or_none(lambda: _told(_write, path) if is_first else 0.0)
        read = workers.all_or_none(lambda: _told(_read, path) if is_last else 0.0)
    except UserError as error:
        return {"problem": f"--workdir={shown(folder)}: {error}"}
    finally:
        if is_first:
            path.unlink(missing_ok=True)
            files.remove_made(made)
    figures = [max(column) for column in zip(*workers.everybodys([written, read]))]
    status = os.statvfs(files.nearest_existing(folder))
    free = status.f_bavail * status.f_frsize
    return {
        "problem": "",
        "write_bytes_per_second": figures[0],
        "read_bytes_per_second": figures[1],
        "free_bytes": free,
    }


def _told(measure: Callable[[Path], float], path: Path) -> float:
    """Bytes per second.

    Raises:
      UserError: the file cannot be written or read.
    """
    try:
        return measure(path)
    except OSError as error:
        raise UserError(
            f"worker {collectives.rank()} cannot keep {_FILE_BYTES // 2**20} MB there ({error.strerror})"
        ) from error


def _write(path: Path) -> float:
    content, started = os.urandom(_FILE_BYTES), time.perf_counter()
    with open(path, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return _FILE_BYTES / (time.perf_counter() - started)


def _read(path: Path) -> float:
    started = time.perf_counter()
    return len(path.read_bytes()) / (time.perf_counter() - started)


def decoding(source: Source) -> list[float]:
    """Images per second that each worker decodes, all of them at once."""
    collectives.barrier()
    return workers.everybodys(decoding_rate(source, _DECODING_SECONDS))
