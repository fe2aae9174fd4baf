"""What a run will need, from its flags alone: bytes per worker, bytes on the wire, and how many classes fit.

Nothing is launched and TensorFlow is not imported. Each formula names the arrays that it counts, with the symbols of
`softmax.py`; 4 bytes stand for float32 and int32. Plain data parallelism is planned beside this design with the least
that it can need: the whole class weights, momentum and gradient, and the logits of the local rows, which their
gradient replaces in place.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

from instcls_tf.classifier_sizes import CPU, GPU, batch_bytes, classifier_bytes, data_parallel_bytes
from instcls_tf.config import PretrainConfig
from instcls_tf.encoder_sizes import encoder_sizes
from instcls_tf.errors import UserError

DEVICES = (CPU, GPU)
GIGABYTE = 10**9

_FLOAT = _INT = 4
_MAX_INSTANCES = 2**31 - 1  # Ids are int32.

# While hard negatives are searched: similarities and ids of the new lists, [n, K]; two blocks of candidates, [c, D],
# the next one on its way; two arrays of a tile of similarities.
_SEARCH_LISTS, _SEARCH_BLOCKS, _SEARCH_TILES = 2, 2, 2
_SEARCH_BLOCK, _SEARCH_TILE = 65536, 2**22


class Plan(NamedTuple):
    """Bytes of a run; `T` workers, each its own device."""

    memory: dict[str, int]  # per worker and part, this design
    data_parallel_memory: dict[str, int]  # per worker and part, plain data parallelism
    search_bytes: int  # per worker while hard negatives are searched, when activations are not there
    peak_bytes: int  # per worker, the larger of a step and a search
    data_parallel_peak_bytes: int
    wire_step: dict[str, int]  # sent by a worker in one step
    wire_epoch: dict[str, int]  # sent by a worker in one epoch
    wire_prior: int  # sent by a worker before training
    steps_per_epoch: int


def make_plan(
    config: PretrainConfig, num_instances: int, num_workers: int, *, device: str = GPU, threads: int = 1
) -> Plan:
    """Plans a run.

    Args:
      config: the recipe.
      num_instances: N.
      num_workers: T.
      device: `cpu` or `gpu`.
      threads: of a worker (CPUs only).
    """
    common = _encoder_memory(config, num_workers)
    sharded = {**_classifier_memory(config, num_instances, num_workers, device, threads), **common}
    plain = {**_data_parallel_memory(config, num_instances, num_workers), **common}
    activations = common["activations of a BN group"] + common["views of a step"]
    search = _search_bytes(config, num_instances, num_workers)
    without = activations + sharded["gathered batch"]
    peak = sum(sharded.values()) + max(0, search - without)
    steps = math.ceil(num_instances / config.batch_size)
    wire_step = _wire_of_a_step(config, num_workers)
    wire_epoch = {"steps": steps * sum(wire_step.values())}
    if config.smoothing:
        wire_epoch["hard negatives: class weights"] = gather_bytes(
            num_instances * config.embedding_size * _FLOAT, num_workers
        )
    return Plan(
        memory=sharded,
        data_parallel_memory=plain,
        search_bytes=search,
        peak_bytes=peak,
        data_parallel_peak_bytes=sum(plain.values()),
        wire_step=wire_step,
        wire_epoch=wire_epoch,
        wire_prior=_wire_of_the_prior(config, num_instances, num_workers),
        steps_per_epoch=steps,
    )


def largest_num_instances(
    peak: Callable[[int], int], memory_limit: int, smallest: int = 1, largest: int = _MAX_INSTANCES
) -> int:
    """The largest N in a range whose `peak(N)`, in bytes, is within the limit; 0 if not even the smallest is."""
    if peak(smallest) > memory_limit:
        return 0
    low, high = smallest, largest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if peak(middle) <= memory_limit else (low, middle - 1)
    return low


def _classifier_memory(config, num_instances, num_workers, device, threads) -> dict[str, int]:
    batch_rows = config.batch_size * config.views
    parts = classifier_bytes(
        num_instances,
        num_workers,
        batch_rows,
        config.embedding_size,
        device=device,
        threads=threads,
        weights_dtype=config.class_weights_dtype,
        momentum_dtype=config.class_momentum_dtype,
    )
    hard_negatives = config.hard_negatives if config.smoothing else 0
    parts["gathered batch"] = batch_bytes(num_workers, batch_rows, config.embedding_size, hard_negatives)
    if config.smoothing:
        parts["lists of hard negatives"] = math.ceil(num_instances / num_workers) * config.hard_negatives * _INT
    return parts


def _data_parallel_memory(config, num_instances, num_workers) -> dict[str, int]:
    return data_parallel_bytes(num_instances, num_workers, config.batch_size * config.views, config.embedding_size)


def _encoder_memory(config: PretrainConfig, num_workers: int) -> dict[str, int]:
    sizes = _sizes(config)
    groups = math.ceil(math.ceil(config.batch_size / config.micro_batch) / num_workers)
    instances = min(config.batch_size, groups * config.micro_batch)
    group_rows = min(config.batch_size, config.micro_batch) * config.views
    mixed = config.precision != "float32"
    # The sum over groups or the reduced ones stand beside the gradients of the backward pass.
    gradients = 2 if groups > 1 or num_workers > 1 else 1
    values = sizes.activations + 2 * sizes.largest_activation  # gradients travel between two layers
    return {
        "encoder weights": (sizes.parameters + sizes.statistics) * _FLOAT + (2 * sizes.parameters if mixed else 0),
        "encoder gradients": gradients * sizes.parameters * _FLOAT,
        "encoder momentum": sizes.parameters * _FLOAT,
        "activations of a BN group": group_rows * values * (2 if mixed else _FLOAT),
        "views of a step": instances * config.views * 3 * config.image_size**2,
    }


def _search_bytes(config: PretrainConfig, num_instances: int, num_workers: int) -> int:
    """What the search for hard negatives takes besides the state, which includes the lists in use."""
    if not config.smoothing:
        return 0
    lists = math.ceil(num_instances / num_workers) * config.hard_negatives * _INT
    block = min(_SEARCH_BLOCK, num_instances) * config.embedding_size * _FLOAT
    return _SEARCH_LISTS * lists + _SEARCH_BLOCKS * block + _SEARCH_TILES * _SEARCH_TILE * _FLOAT


def _sizes(config: PretrainConfig):
    return encoder_sizes(
        encoder=config.encoder,
        width_multiplier=config.width_multiplier,
        stem=config.stem,
        mlp_head=config.mlp_head,
        embedding_size=config.embedding_size,
        image_size=config.image_size,
    )


def gather_bytes(total: int, num_workers: int) -> int:
    """What a worker sends in a ring allgather whose result has `total` bytes: (T - 1) / T of it."""
    return total * (num_workers - 1) // num_workers


def reduce_bytes(total: int, num_workers: int) -> int:
    """What a worker sends in a ring allreduce of `total` bytes: 2 (T - 1) / T of it."""
    return 2 * total * (num_workers - 1) // num_workers


def _wire_of_a_step(config: PretrainConfig, num_workers: int) -> dict[str, int]:
    batch_rows = config.batch_size * config.views
    sizes = _sizes(config)
    lists = batch_rows * config.hard_negatives * _INT if config.smoothing else 0
    ids = 2 * batch_rows * _INT * (2 if config.smoothing else 1)  # id and rank; again for the lookup of lists
    gathered = {"embeddings": batch_rows * config.embedding_size * _FLOAT, "instance ids": ids}
    reduced = {
        "softmax sums and maximum": 4 * batch_rows * _FLOAT,
        "gradient of the embeddings": batch_rows * config.embedding_size * _FLOAT,
        "encoder gradients": sizes.parameters * _FLOAT,
        "BN statistics": (sizes.statistics + 1) * _FLOAT,
    }
    sent = {name: gather_bytes(total, num_workers) for name, total in gathered.items()}
    if config.smoothing:  # looked up by their owners, then gathered with the batch
        sent["hard negatives of the batch"] = reduce_bytes(lists, num_workers) + gather_bytes(lists, num_workers)
    return {**sent, **{name: reduce_bytes(total, num_workers) for name, total in reduced.items()}}


def _wire_of_the_prior(config: PretrainConfig, num_instances: int, num_workers: int) -> int:
    if config.classifier_init == "random":
        return 0
    running = config.classifier_init == "raw_running_bn"
    epochs = 1 + (config.bn_burn_in if running else 0)
    rows = gather_bytes(num_instances * (config.embedding_size * _FLOAT + _INT), num_workers)
    # Sum, sum of squares and count of each channel; as many values as moving means and variances, and half as many.
    moments = reduce_bytes(3 * _sizes(config).statistics // 2 * _FLOAT, num_workers) if running else 0
    return epochs * (rows + math.ceil(num_instances / config.batch_size) * moments)


# ------------------------------------------------------------------------------------------------------ what is asked


def check(num_instances: int | None, num_workers: int, memory_limit: float, device: str) -> None:
    """Checks what is asked besides the recipe.

    Args:
      num_instances: N, or None if it was not given.
      num_workers: T.
      memory_limit: of a worker, in GB.
      device: `cpu` or `gpu`.

    Raises:
      UserError: one sentence naming the flag.
    """
    if num_instances is None:
        raise UserError("--num_instances is missing: how many images, each a class, the run is to have")
    if num_workers < 1:
        raise UserError(f"--workers={num_workers}: must be at least 1")
    if not num_workers <= num_instances <= _MAX_INSTANCES:
        raise UserError(
            f"--num_instances={num_instances}: must be at least the {num_workers} workers and at most {_MAX_INSTANCES}"
        )
    if not (math.isfinite(memory_limit) and memory_limit > 0):
        raise UserError(f"--memory_limit={memory_limit}: must be a number above 0, in GB")
    if device not in DEVICES:
        raise UserError(f"--device={device}: must be one of {', '.join(DEVICES)}")
