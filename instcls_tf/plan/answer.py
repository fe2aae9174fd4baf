"""The answer of `plan`: what a run needs, as a table, as JSON and as a picture."""

from __future__ import annotations

import math

from instcls_tf.config import CACHE_IN_MEMORY, PretrainConfig
from instcls_tf.data.folder import refuse_picture_among_images
from instcls_tf.data.limits import limits_of
from instcls_tf.data.source import Source
from instcls_tf.distributed import cores
from instcls_tf.distributed.memory import free_bytes
from instcls_tf.errors import UserError
from instcls_tf.files import refuse_unwritable
from instcls_tf.plan import measured, planner
from instcls_tf.report.answer import GIGABYTE, Answer, Picture
from instcls_tf.report.memory_curves import Curve, draw_memory

# Of an image's longer side to its shorter one, at most; cameras take 4:3 and 3:2, panoramas are rare.
_LONGEST = 16 / 9

SHARDED, DATA_PARALLEL = "this design", "plain data parallelism"


def plan_run(
    config: PretrainConfig,
    num_instances: int,
    num_workers: int,
    memory_limit: float,
    device: str,
    output: str | None,
    source: Source | None = None,
    measure_seconds: float = 0.0,
) -> Answer:
    """Plans a run, looks for the largest one that fits, and times some steps if there are images.

    Args:
      config: the recipe.
      num_instances: N.
      num_workers: T.
      memory_limit: of a worker, in GB.
      device: `cpu` or `gpu`; a CPU worker has as many threads as this machine has cores.
      output: PNG file of the picture, or None.
      source: images with which steps are timed on this machine; None for none.
      measure_seconds: how long.

    Returns:
      The plan, as a readable text as well, and the picture, which is still to be drawn. All sizes are bytes of one
      worker: `memory`, `data_parallel_memory` and the peaks of what it holds, `wire_*` of what it sends per step, per
      epoch and for the prior; `ratio` is that of the two largest N. `measured` has seconds, see `plan.measured.Hours`.

    Raises:
      UserError: a value is out of range, or the picture cannot be written or would be one of the dataset's.
    """
    if output:
        refuse_picture_among_images(config.dataset, output, output)
        refuse_unwritable(output)
    planner.check_device(config, device)
    limit = round(memory_limit * GIGABYTE)

    def planned(n: int) -> planner.Plan:
        return planner.make_plan(config, n, num_workers, device=device, threads=cores.threads_of_worker(1))

    peaks = {SHARDED: lambda n: planned(n).peak_bytes, DATA_PARALLEL: lambda n: planned(n).data_parallel_peak_bytes}
    largest = {name: planner.largest_num_instances(peak, limit, num_workers) for name, peak in peaks.items()}
    curves = [Curve(name, peaks[name], largest[name]) for name in (DATA_PARALLEL, SHARDED)]
    title = f"{num_workers} workers, {memory_limit:g} GB each: the largest N"
    plan = planned(num_instances)
    answer = {
        "num_instances": num_instances,
        "workers": num_workers,
        "precision": config.precision,
        "memory_limit_bytes": limit,
        "fits": plan.peak_bytes <= limit,
        **plan._asdict(),
        "largest_num_instances": largest[SHARDED],
        "data_parallel_largest_num_instances": largest[DATA_PARALLEL],
        "ratio": largest[SHARDED] / largest[DATA_PARALLEL] if largest[DATA_PARALLEL] else None,
    }
    picture = Picture(output, lambda path: draw_memory(path, curves, [limit], title)) if output else None
    text = _text(plan, answer, memory_limit)
    if config.cache == CACHE_IN_MEMORY:
        answer["most_cache_bytes"] = most_cache_bytes(config, num_instances)
        most = _gigabytes(answer["most_cache_bytes"])
        text += f"\nNot in it: --cache=ram, at most about {most} GB on each machine, of images up to 16:9"
    if source is not None:
        _refuse_too_large_for_one(config, num_instances, source, measure_seconds)
        found = measured.measure_hours(config, num_instances, source, measure_seconds)
        answer["measured"] = measured.result_of(found)
        text += f"\n\n{measured.text_of(found, measure_seconds)}"
    return Answer(answer, text, picture=picture)


def most_cache_bytes(config: PretrainConfig, num_instances: int) -> int:
    """Of the pixels that a cache keeps of N images up to 16:9, but for rounding.

    Args:
      config: the recipe.
      num_instances: N.
    """
    limits = limits_of(config)
    return 3 * num_instances * max(limits.pixels, math.ceil(limits.side**2 * _LONGEST))


def _refuse_too_large_for_one(
    config: PretrainConfig, num_instances: int, source: Source, measure_seconds: float
) -> None:
    """Steps are timed in one process, which has all classes."""
    threads = cores.threads_of_worker(1)
    plan = planner.make_plan(config, num_instances, 1, device=planner.CPU, threads=threads)
    needed = plan.peak_bytes
    free = free_bytes()
    if free is not None and needed > free:
        of_images = num_instances == source.num_instances
        less = planner.less_memory(config, num_instances, 1, plan.memory, machines=False, of_images=of_images)
        raise UserError(
            f"--measure_seconds={measure_seconds:g}: times steps in one process, which would need"
            f" {_gigabytes(needed)} GB of {_gigabytes(free)} GB free: leave it out, or give {less}"
        )


def _text(plan: planner.Plan, answer: dict, memory_limit: float) -> str:
    names = list(dict.fromkeys([*plan.memory, *plan.data_parallel_memory]))
    lines = [f"{'Memory of a worker, GB':34}{SHARDED:>14}{DATA_PARALLEL:>26}"]
    for name in names:
        parts = [_gigabytes(memory.get(name)) for memory in (plan.memory, plan.data_parallel_memory)]
        lines.append(f"  {name:32}{parts[0]:>14}{parts[1]:>26}")
    lines.append(f"  (the encoder computes in --precision={answer['precision']})")
    peaks = [_gigabytes(plan.peak_bytes), _gigabytes(plan.data_parallel_peak_bytes)]
    lines.append(f"  {'at the peak':32}{peaks[0]:>14}{peaks[1]:>26}")
    if plan.search_bytes:
        search = _gigabytes(plan.search_bytes)
        lines.append(f"  ({search} GB while hard negatives are searched, with neither views nor activations there)")
    lines += ["", f"Sent by a worker, MB{'per step':>28}"]
    lines += [f"  {name:32}{sent / 1e6:14.2f}" for name, sent in plan.wire_step.items()]
    per_epoch, of_search = sum(plan.wire_epoch.values()), plan.wire_epoch.get("hard negatives: class weights", 0)
    lines += [
        f"  {'in all':32}{sum(plan.wire_step.values()) / 1e6:14.2f}",
        f"  per epoch of {plan.steps_per_epoch} steps: {per_epoch / GIGABYTE:.2f} GB, of which"
        f" {of_search / GIGABYTE:.2f} GB for the search of hard negatives",
        f"  before training, for the contrastive prior: {plan.wire_prior / GIGABYTE:.2f} GB",
        "",
        f"Largest N in {memory_limit:g} GB per worker: {answer['largest_num_instances']:,} with this design,"
        f" {answer['data_parallel_largest_num_instances']:,} with plain data parallelism"
        + (f" ({answer['ratio']:.1f} times)" if answer["ratio"] else ""),
        f"N = {answer['num_instances']:,} {'fits' if answer['fits'] else 'DOES NOT FIT'}: {peaks[0]} of"
        f" {memory_limit:g} GB",
    ]
    if plan.checkpoint_lists_bytes:
        lists = f", and {_gigabytes(plan.checkpoint_lists_bytes)} more in mid-epoch, of hard negatives"
    else:
        lists = ""
    lines.append(f"A checkpoint: {_gigabytes(plan.checkpoint_bytes)} GB{lists}")
    return "\n".join(lines)


def _gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / GIGABYTE:.3f}"
