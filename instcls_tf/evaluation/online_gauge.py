"""The gauges without labels while a run goes on, to be logged beside its loss, and its start to hold them against."""

from __future__ import annotations

import time
from typing import Callable

import numpy as np
import tensorflow as tf

from instcls_tf import stamps
from instcls_tf.config import PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.evaluation.features import Embedder, OnProgress
from instcls_tf.evaluation.gauge import Reading
from instcls_tf.evaluation.paired import OF_AGREEMENTS, compared
from instcls_tf.evaluation.two_views import TwoViews

# A smaller fall of the agreement is no reason to do anything, whether it is chance or not.
_CLEARLY = 0.05
_START = "_start"


class OnlineGauge:
    """Reads the gauges of the encoder of a run; all workers together.

    Args:
      config: the recipe; `gauge_every` says after how many epochs.
      encoder: the network that is being trained.
      source: its images.
      say: told, once, if the network has become worse than it was at the start.
      start: what an earlier part of the run has logged of its start; None where `measure_start` follows.
      settles: measurements that warn of nothing, until the run has forgotten moving statistics of 0 and 1.
    """

    def __init__(
        self,
        config: PretrainConfig,
        encoder: tf.keras.Model,
        source: Source,
        say: Callable[[str], None],
        start: dict[str, float] | None = None,
        settles: int = 0,
    ):
        self._every = config.gauge_every
        self._backbone = Embedder(encoder.get_layer("backbone"))
        self._views = TwoViews(config, source)
        self._say, self._warned, self._settles = say, False, settles
        self._start = start or {}
        # Of each image or, where the start was measured by an earlier part of the run, their mean.
        self._agreement_before: np.ndarray | float | None = self._start.get(f"gauge_agreement{_START}")

    def is_due(self, epoch: int) -> bool:
        """Whether to measure at the end of this epoch, counted from 0."""
        return (epoch + 1) % self._every == 0

    def measure_start(self, encoder: tf.keras.Model | None = None) -> None:
        """Reads the gauges of the starting weights, which are logged beside all later ones.

        Args:
          encoder: has them; None for the run's own, which has made no step yet and has seen images.
        """
        backbone = self._backbone if encoder is None else Embedder(encoder.get_layer("backbone"))
        reading = self._read(backbone)
        self._start = {f"{name}{_START}": value for name, value in reading.figures().items()}
        self._agreement_before = reading.shares

    def measure(self, progress: OnProgress = stamps.stamp) -> dict[str, float]:
        """`gauge_agreement` and `rank_me`, those of the start, and what they cost, as `metrics.jsonl` has them.

        Args:
          progress: see `TwoViews.features`; it may end the measurement.
        """
        started = time.monotonic()
        now = self._read(self._backbone, progress)
        self._settles -= 1
        if not self._warned and self._settles < 0:
            warning = if_worse(now.shares, self._agreement_before)
            self._warned = bool(warning)
            if warning:
                self._say(warning)
        return {**now.figures(), **self._start, "gauge_seconds": time.monotonic() - started}

    def _read(self, backbone: Embedder, progress: OnProgress = stamps.stamp) -> Reading:
        (reading,) = self._views.read(backbone, progress)
        return reading


def if_worse(now: np.ndarray, start: np.ndarray | float | None) -> str:
    """What to say of a network that has become worse than it was at its start; nothing if it has not, clearly.

    Args:
      now: `[M]`, the agreement of each image, see `gauge.shared_neighbours`.
      start: likewise, or the mean of all; None if nobody has measured it.
    """
    if start is None or now.mean() > np.mean(start) - _CLEARLY:
        return ""
    # A mean has an error of its own, as large as that of what is held against it.
    errors = OF_AGREEMENTS * (1.0 if np.ndim(start) else np.sqrt(2.0))
    if compared(now, start, errors) != -1:
        return ""
    return (
        f"warning: two views of an image share {now.mean():.0%} of their nearest neighbours, {np.mean(start):.0%}"
        f" before: the network is worse than at its start; is --learning_rate too high, or the augmentation too strong"
        f" for these images? (python -m scripts.show_views shows it)"
    )


def start_in(lines: list[dict[str, float]]) -> dict[str, float]:
    """What the lines of a `metrics.jsonl` say of the run's start."""
    for line in lines:
        found = {name: value for name, value in line.items() if name.endswith(_START) and not name.startswith("loss")}
        if found:
            return found
    return {}
