"""Whether what is to be measured fits into the memory that is free: asked before the system ends the process for it."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from instcls_tf.benchmark.sizes import misfit
from instcls_tf.distributed import collectives, workers
from instcls_tf.distributed.memory import free_bytes
from instcls_tf.errors import UserError

# The formulas of `plan` and what processes take differ by up to 10 %.
_MARGIN = 1.1


class Fit(NamedTuple):
    """What a worker needs, beside what it can have."""

    needed_bytes: int
    free_bytes: int | None  # None where nobody tells: it is tried then

    @property
    def holds(self) -> bool:
        """Whether it fits."""
        return self.free_bytes is None or self.needed_bytes <= self.free_bytes

    def __str__(self) -> str:
        return "fits" if self.holds else misfit(self.needed_bytes, self.free_bytes or 0)


def look(planned_bytes: int, reused_bytes: int = 0) -> Fit:
    """Whether all workers can have so much now; all of them together.

    GPUs tell nobody what they have before it is used.

    Args:
      planned_bytes: of this worker, by the formulas of `plan`.
      reused_bytes: that this process keeps of what is not needed any more, and in whose place the new one fits.
    """
    needed = int(_MARGIN * planned_bytes)
    share = None
    if not tf.config.get_visible_devices("GPU"):
        free = free_bytes()
        share = None if free is None else free // collectives.local_size() + reused_bytes
    # One worker that does not begin would leave the others waiting for it.
    needs, shares = zip(*workers.everybodys([needed, share]))
    return Fit(max(needs), min((one for one in shares if one is not None), default=None))


def refuse(subject: str, planned_bytes: int, wanted: str = "a smaller --num_instances or more machines") -> None:
    """Refuses what does not fit as a whole; all workers together.

    Args:
      subject: of the benchmark.
      planned_bytes: of the fullest worker.
      wanted: what takes less.

    Raises:
      UserError: it does not fit.
    """
    fit = look(planned_bytes)
    if not fit.holds:
        raise UserError(f"benchmark {subject}: {fit} for a worker, wanted {wanted}")
