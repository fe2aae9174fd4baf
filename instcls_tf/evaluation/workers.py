"""How an evaluation starts on its workers, and the sums they share."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf import collectives, device
from instcls_tf.run_log import Progress


def start(seed: int = 0) -> Progress:
    """Joins the other workers, takes a device, fixes the seeds; returns what rank 0 reports progress with."""
    collectives.init()
    device.take()
    tf.keras.utils.set_random_seed(seed)
    return Progress(visible=collectives.rank() == 0)


def total(values: np.ndarray | list, name: str) -> np.ndarray:
    """The sum of the workers' arrays (float64, so that counts stay exact); all workers call it together."""
    return collectives.sum_over_workers(tf.constant(values, tf.float64), name).numpy()


def rank_0_says(yes: bool, name: str) -> bool:
    """What rank 0 found, on all workers: a file system may show them different things for a moment."""
    return bool(total([float(yes and collectives.rank() == 0)], name)[0])
