"""When a run will be done, said once: after its first steps, by how long they took."""

from __future__ import annotations

import time
from typing import Callable

from instcls_tf.pretraining.steps import Steps
from instcls_tf.progress import in_words

# Enough of both to tell, but for a run that is over soon anyway.
_STEPS, _SECONDS, _SHORTEST = 10, 30.0, 120.0


class Forecast:
    """Watches the first steps.

    Args:
      steps: of the run.
      say: takes the sentence.
    """

    def __init__(self, steps: Steps, say: Callable[[str], None]):
        self._steps, self._say = steps, say
        self._begun: tuple[int, float] | None = None  # not with the first step, which compiles
        self._is_done = False
        self._search_seconds = self._searched = 0.0  # of one, and of all since the steps are watched

    def searched(self, seconds: float) -> None:
        """Takes how long a search for hard negatives took, as every epoch has one."""
        self._search_seconds = seconds
        self._searched += seconds if self._begun is not None else 0.0

    def stepped(self, step: int) -> None:
        """Takes note of a completed step, counted from 0."""
        if self._is_done:
            return
        now = time.monotonic()
        if self._begun is None:
            self._begun = step, now
        first, since = self._begun
        if step - first < _STEPS or now - since < _SECONDS:
            return
        self._is_done = True
        per_step, left = (now - since - self._searched) / (step - first), self._steps.end - step - 1
        searches = (self._steps.end - 1) // self._steps.per_epoch - step // self._steps.per_epoch
        seconds = per_step * left + self._search_seconds * searches
        if seconds >= _SHORTEST:
            end = time.strftime("%a %d %b %H:%M", time.localtime(time.time() + seconds))
            self._say(f"at {per_step:.3g} s a step this run is done in about {in_words(seconds)}, {end}")
