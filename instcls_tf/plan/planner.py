"""What a run will need, from its flags alone: bytes per worker, bytes on the wire, and how many classes fit.

Nothing is launched and TensorFlow is not imported. Each formula names the arrays that it counts, with the symbols of
`softmax.py`; 4 bytes stand for float32 and int32. Plain data parallelism is planned beside this design with the least
that it can need: the whole class weights, momentum and gradient, and the logits of the local rows, which their
gradient replaces in place.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

from instcls_tf.checks import refuse_int8_on_gpu, require_value
from instcls_tf.classifier.shift import needs_shift
from instcls_tf.classifier.tiles import FLOAT_BYTES
from instcls_tf.config import AUTO, BFLOAT16, FLOAT32, NEVER, RANDOM, RAW_RUNNING_BN, PretrainConfig
from instcls_tf.distributed import partition
from instcls_tf.encoder.sizes import sizes_of
from instcls_tf.errors import UserError
from instcls_tf.plan.classifier_bytes import (
    CPU,
    GPU,
    batch_bytes,
    classifier_bytes,
    data_parallel_bytes,
    search_bytes,
    table_bytes,
)

DEVICES = (CPU, GPU)

# Of the messages of a step, those that are gathered; the others are summed.
GATHERED = ("embeddings", "instance ids", "hard negatives of the batch", "batch contrast")

_ACTIVATIONS = "activations"
# Flags that make parts of a worker's memory smaller; all other parts are of its classes.
_SMALLER = {
    "--micro_batch, --image_size or --encoder": (_ACTIVATIONS,),
    "--batch_size": ("views of a step", "gathered batch", "batch contrast"),
    "--width_multiplier or --encoder": ("encoder weights", "encoder gradients", "encoder momentum"),
    "--hard_negatives": ("lists of hard negatives",),
}
# Of [b, B] numbers, similarities and what becomes of them, that stand side by side.
_CONTRAST_MATRICES = 8
_FLOAT = _INT = FLOAT_BYTES
MAX_INSTANCES = 2**31 - 1  # Ids are int32.


class Batch(NamedTuple):
    """A full batch, which has no more than all N instances, and the part of the worker that has the most of it."""

    instances: int  # of all workers
    rows: int  # views of all workers, B of the formulas
    local_groups: int  # BN groups
    local_instances: int


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
    checkpoint_bytes: int  # on the disk, after an epoch
    checkpoint_lists_bytes: int  # of it besides in mid-epoch: hard negatives


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
    batch = batch_of(config, num_instances, num_workers)
    common = _encoder_memory(config, batch, num_workers)
    sharded = {**_classifier_memory(config, num_instances, num_workers, batch.rows, device, threads), **common}
    plain = {**data_parallel_bytes(num_instances, num_workers, batch.rows, config.embedding_size), **common}
    activations = common[_ACTIVATIONS] + common["views of a step"]
    search = 0
    if config.smoothing:
        search = search_bytes(num_instances, num_workers, config.embedding_size, config.hard_negatives)
    without = activations + sharded["gathered batch"]
    peak = sum(sharded.values()) + max(0, search - without)
    steps = partition.steps_per_epoch(num_instances, config.batch_size)
    wire_step = _wire_of_a_step(config, batch, num_workers)
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
        checkpoint_bytes=_checkpoint_bytes(config, num_instances),
        checkpoint_lists_bytes=num_instances * config.hard_negatives * _INT if config.smoothing else 0,
    )


def largest_num_instances(peak: Callable[[int], int], memory_limit: int, smallest: int = 1) -> int:
    """The largest N from the smallest on whose `peak(N)`, in bytes, is within the limit; 0 if not even that one is."""
    if peak(smallest) > memory_limit:
        return 0
    low, high = smallest, MAX_INSTANCES
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if peak(middle) <= memory_limit else (low, middle - 1)
    return low


def _classifier_memory(
    config: PretrainConfig, num_instances: int, num_workers: int, batch_rows: int, device: str, threads: int
) -> dict[str, int]:
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
    if config.batch_contrast:
        parts["batch contrast"] = _CONTRAST_MATRICES * math.ceil(batch_rows / num_workers) * batch_rows * _FLOAT
    return parts


def _encoder_memory(config: PretrainConfig, batch: Batch, num_workers: int) -> dict[str, int]:
    sizes = sizes_of(config)
    # With --recompute=auto all of them are kept where they fit, and one group's where they do not.
    kept = batch.local_instances if config.recompute == NEVER else min(batch.instances, config.micro_batch)
    mixed = config.precision != FLOAT32
    # The sum over groups or the reduced ones stand beside the gradients of the backward pass.
    gradients = 2 if batch.local_groups > 1 or num_workers > 1 else 1
    return {
        "encoder weights": (sizes.parameters + sizes.statistics) * _FLOAT + (2 * sizes.parameters if mixed else 0),
        "encoder gradients": gradients * sizes.parameters * _FLOAT,
        "encoder momentum": sizes.parameters * _FLOAT,
        _ACTIVATIONS: sizes.activation_bytes(kept * config.views, mixed),
        "views of a step": batch.local_instances * config.views * 3 * config.image_size**2,
    }


def _checkpoint_bytes(config: PretrainConfig, num_instances: int) -> int:
    """Weights and momentum of encoder and classes."""
    sizes, dtypes = sizes_of(config), (config.class_weights_dtype, config.class_momentum_dtype)
    classes = sum(table_bytes(num_instances, config.embedding_size, dtype) for dtype in dtypes)
    return classes + (2 * sizes.parameters + sizes.statistics) * _FLOAT


def less_memory(
    config: PretrainConfig,
    num_instances: int,
    num_workers: int,
    memory: dict[str, int],
    *,
    machines: bool = True,
    of_images: bool = False,
) -> str:
    """What to take where a worker's parts do not fit: less of the largest.

    Args:
      config: the recipe.
      num_instances: N.
      num_workers: T.
      memory: bytes by part, as in `Plan`.
      machines: whether more of them are to be had.
      of_images: whether N is the number of images that are there, and no flag says it.
    """
    sizes = {flags: sum(memory.get(part, 0) for part in parts) for flags, parts in _SMALLER.items()}
    flags = max(sizes, key=lambda name: sizes[name])
    if sizes[flags] <= sum(memory.values()) - sum(sizes.values()):
        narrower = [f"--class_weights_dtype={BFLOAT16}"] if of_images and config.class_weights_dtype == FLOAT32 else []
        fewer = "fewer images" if of_images else "a smaller --num_instances"
        *first, last = [fewer, *narrower, *(["more machines"] if machines else [])]
        return f"{', '.join(first)} or {last}" if first else last
    largest = max(_SMALLER[flags], key=lambda part: memory.get(part, 0))
    wanted = f"a smaller {flags}"
    if largest == _ACTIVATIONS and config.recompute == NEVER:  # of all of a worker's instances
        wanted = "a smaller --batch_size, --image_size or --encoder"
        if batch_of(config, num_instances, num_workers).local_instances > config.micro_batch:
            wanted = f"--recompute={AUTO}, or {wanted}"
    return f"{wanted}, the largest part is {largest}"


def batch_of(config: PretrainConfig, num_instances: int, num_workers: int) -> Batch:
    """A full batch of N instances; arguments as in `make_plan`."""
    instances = min(config.batch_size, num_instances)
    share = partition.largest_share(instances, config.micro_batch, num_workers)
    return Batch(instances, instances * config.views, *share)


def gather_bytes(total: int, num_workers: int) -> int:
    """What a worker sends in a ring allgather whose result has `total` bytes: (T - 1) / T of it."""
    return total * (num_workers - 1) // num_workers


def reduce_bytes(total: int, num_workers: int) -> int:
    """What a worker sends in a ring allreduce of `total` bytes: 2 (T - 1) / T of it."""
    return 2 * total * (num_workers - 1) // num_workers


def _wire_of_a_step(config: PretrainConfig, batch: Batch, num_workers: int) -> dict[str, int]:
    batch_rows = batch.rows
    sizes = sizes_of(config)
    gathered = {
        "embeddings": batch_rows * config.embedding_size * _FLOAT,
        "instance ids": 2 * batch_rows * _INT,  # id and rank
    }
    if config.smoothing:  # one list per instance, from the owner of its class to all
        gathered["hard negatives of the batch"] = batch.instances * config.hard_negatives * _INT
    if config.batch_contrast:  # embeddings, id and rank, and five numbers of each row
        gathered["batch contrast"] = batch_rows * (config.embedding_size * _FLOAT + 2 * _INT + 5 * _FLOAT)
    reduced = {
        **({"softmax maxima": 2 * batch_rows * _FLOAT} if needs_shift(config.temperature) else {}),
        "softmax sums and maximum": 4 * batch_rows * _FLOAT,
        "gradient of the embeddings": batch_rows * config.embedding_size * _FLOAT,
        "encoder gradients": sizes.parameters * _FLOAT,
        "BN statistics": (sizes.statistics + 1) * _FLOAT,
    }
    sent = {name: gather_bytes(total, num_workers) for name, total in gathered.items()}
    return {**sent, **{name: reduce_bytes(total, num_workers) for name, total in reduced.items()}}


def _wire_of_the_prior(config: PretrainConfig, num_instances: int, num_workers: int) -> int:
    if config.classifier_init == RANDOM:
        return 0
    running = config.classifier_init == RAW_RUNNING_BN
    epochs = 1 + (config.bn_burn_in if running else 0)
    rows = gather_bytes(num_instances * (config.embedding_size * _FLOAT + _INT), num_workers)
    # Sum, sum of squares and count of each channel; as many values as moving means and variances, and half as many.
    moments = reduce_bytes(3 * sizes_of(config).statistics // 2 * _FLOAT, num_workers) if running else 0
    return epochs * (rows + partition.steps_per_epoch(num_instances, config.batch_size) * moments)


# ------------------------------------------------------------------------------------------------------ what is asked


def check_device(config: PretrainConfig, device: str) -> None:
    """Raises UserError if the device cannot do what the recipe asks for."""
    if device == GPU:
        refuse_int8_on_gpu(config, otherwise=f"--device={CPU}")


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
    require_value("workers", num_workers, num_workers >= 1, "at least 1")
    is_possible = num_workers <= num_instances <= MAX_INSTANCES
    wanted = f"at least the {num_workers} workers and at most {MAX_INSTANCES}"
    require_value("num_instances", num_instances, is_possible, wanted)
    is_size = math.isfinite(memory_limit) and memory_limit > 0
    require_value("memory_limit", memory_limit, is_size, "a number above 0, in GB")
    require_value("device", device, device in DEVICES, "one of " + ", ".join(DEVICES))
