"""Timing on all workers at once: everybody starts together, the slowest counts."""

from __future__ import annotations

import time
from typing import Callable

import numpy as np
import tensorflow as tf

from instcls_tf.distributed import collectives


def seconds_of(action: Callable[[], object], repeats: int) -> float:
    """The median time of an action that all workers make together, after a first one that does not count.

    Args:
      action: returns when its work is done.
      repeats: how often it is timed.
    """
    action()
    times = []
    for _ in range(repeats):
        collectives.barrier()
        started = time.perf_counter()
        action()
        times.append(slowest(time.perf_counter() - started))
    return float(np.median(times))


def slowest(seconds: float) -> float:
    """The largest of the workers' values, on all of them."""
    return float(tf.reduce_max(collectives.all_gather(tf.constant([seconds], tf.float64), "seconds")))
