"""Whether a worker keeps what its BN groups leave behind for the backward pass, or encodes them again."""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.config import ALWAYS, AUTO, FLOAT32, PretrainConfig
from instcls_tf.distributed import collectives, partition
from instcls_tf.distributed.memory import free_bytes
from instcls_tf.encoder.bn_groups import Groups
from instcls_tf.encoder.sizes import sizes_of
from instcls_tf.pretraining.steps import Steps

# Of what is free on a machine: formulas do not count everything.
_SHARE = 0.6


def groups_of(config: PretrainConfig, num_instances: int) -> Groups:
    """How this worker encodes its share of a batch.

    With `--recompute=auto` activations are kept if those of all its groups take at most 60 % of its part of the memory
    that is free on the machine now. Not on GPUs, whose free memory nobody tells before it is used.

    Args:
      config: the recipe.
      num_instances: N; a full batch has no more.
    """
    in_batch = Steps(config, num_instances).full_batch / config.micro_batch
    several = config.groups_per_batch > collectives.size()
    if not several or config.recompute == ALWAYS:
        return Groups(several, kept=False, in_batch=in_batch)
    if config.recompute == AUTO:
        if tf.config.list_logical_devices("GPU"):
            return Groups(several, kept=False, in_batch=in_batch)
        free = free_bytes()
        needed = activation_bytes(config, num_instances, collectives.size())
        if free is None or needed > _SHARE * free / collectives.local_size():
            return Groups(several, kept=False, in_batch=in_batch)
    return Groups(several, kept=True, in_batch=in_batch)


def activation_bytes(config: PretrainConfig, num_instances: int, num_workers: int) -> int:
    """What all groups of a worker leave behind.

    Args:
      config: the recipe.
      num_instances: N; a full batch has no more.
      num_workers: T.
    """
    full_batch = Steps(config, num_instances).full_batch
    _, instances = partition.largest_share(full_batch, config.micro_batch, num_workers)
    return sizes_of(config).activation_bytes(instances * config.views, mixed=config.precision != FLOAT32)
