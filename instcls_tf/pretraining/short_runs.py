"""Rivals whose published settings are meant for longer runs than this one."""

from __future__ import annotations

from collections.abc import Iterator

from instcls_tf.config import MOCO_V2, PretrainConfig
from instcls_tf.distributed.partition import steps_per_epoch
from instcls_tf.pretraining.steps import Steps

# How much of its random start may be left in MoCo's key encoder when a run ends.
_LEFT = 0.1
_SHORTER_MOMENTA = (0.99, 0.9)


def sentences(config: PretrainConfig, num_instances: int) -> Iterator[str]:
    """What of a method cannot come into effect in a run of this length, one sentence each.

    Args:
      config: the recipe.
      num_instances: N.
    """
    config = config.for_instances(num_instances)
    steps = Steps(config, num_instances).total
    if config.method == MOCO_V2:
        left = config.moco_momentum**steps
        if left > _LEFT:
            shorter = next((f": take --moco_momentum={m:g}" for m in _SHORTER_MOMENTA if m**steps <= _LEFT), "")
            yield (
                f"--moco_momentum={config.moco_momentum:g}: after the {steps} steps of this run {left:.0%} of the key"
                f" encoder are still its random start{shorter}"
            )
    window = config.window(num_instances)
    if window is not None:
        size, stride = window
        moves = steps // steps_per_epoch(size, config.batch_size) - 1
        shown = size + moves * min(size, stride)
        if shown < num_instances:
            fitting = -(-(num_instances - size) // max(1, moves))
            wider = f"take --pic_stride={fitting}, or more epochs" if fitting <= size else "it takes more epochs"
            yield f"--pic_stride={stride}: this run's windows reach only {shown} of the {num_instances} images: {wider}"
