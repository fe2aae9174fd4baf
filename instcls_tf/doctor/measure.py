"""What workers measure together: clocks, collectives, the workdir's file system, decoding. All workers call these."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

from instcls_tf.benchmark.input import decoding_rate
from instcls_tf.benchmark.step import measure_parts
from instcls_tf.benchmark.timing import seconds_of
from instcls_tf.config import PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError
from instcls_tf.pretraining import agreement

_ROUNDS = 5
_LARGE_BYTES, _REPEATS = 2**24, 5
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
    """Latency (a sum of one number) and bandwidth (sum and gather of 16 MiB) between all workers: medians."""
    small, large = tf.Variable(tf.zeros([1])), tf.Variable(tf.zeros([_LARGE_BYTES // 4]))
    part = tf.Variable(tf.zeros([_LARGE_BYTES // 4 // collectives.size()]))

    @tf.function(autograph=False)
    def add(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_max(collectives.sum_over_workers(values, "doctor_sum"))

    @tf.function(autograph=False)
    def gather(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_max(collectives.all_gather(values, "doctor_gather"))

    latency, sum_seconds, gather_seconds = (
        seconds_of(lambda action=action, values=values: action(values.read_value()).numpy(), _REPEATS)  # type: ignore[misc]
        for action, values in ((add, small), (add, large), (gather, part))
    )
    return {
        "latency_seconds": latency,
        "sum_bytes_per_second": _LARGE_BYTES / sum_seconds,
        "gather_bytes_per_second": _LARGE_BYTES / gather_seconds,
    }


def step_of(config: PretrainConfig, num_instances: int) -> dict[str, float]:
    """Encoder, classifier and messages of a step of these flags, each alone, in seconds."""
    return measure_parts(config, num_instances, repeats=3)


def workdir(folder: str) -> dict[str, Any]:
    """Whether all workers see the same folder, and how fast rank 0 writes there and another worker reads.

    The folder stays as it is: the file is removed, and the folder if it was not there.
    """
    is_new = not os.path.exists(folder)
    try:
        agreement.refuse_other_workdirs(folder)
    except UserError as error:
        return {"problem": str(error)}
    path = Path(folder, ".doctor")
    written = _write(path) if collectives.rank() == 0 else 0.0
    collectives.barrier()
    read = _read(path) if collectives.rank() == collectives.size() - 1 else 0.0
    figures = [max(column) for column in zip(*workers.everybodys([written, read]))]
    if collectives.rank() == 0:
        path.unlink(missing_ok=True)
        if is_new:
            os.rmdir(folder)
    status = os.statvfs(folder if os.path.exists(folder) else os.path.dirname(os.path.abspath(folder)))
    free = status.f_bavail * status.f_frsize
    return {
        "problem": "",
        "write_bytes_per_second": figures[0],
        "read_bytes_per_second": figures[1],
        "free_bytes": free,
    }


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
