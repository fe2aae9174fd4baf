"""The answer of `plan --scaling`: seconds of a step and efficiency against the number of workers, for some N."""

from __future__ import annotations

from typing import Any, NamedTuple

from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.data.folder import refuse_picture_among_images
from instcls_tf.distributed import cores
from instcls_tf.files import refuse_unwritable
from instcls_tf.plan import planner, step_model
from instcls_tf.plan.step_model import TERMS, Rates, Setting
from instcls_tf.report.answer import GIGABYTE, Answer, Picture
from instcls_tf.report.step_curves import draw_steps

# Titles of the table's columns, as wide as their numbers.
_TITLES = ("encoder", "classifier", "search", "messages", "of encoder", "hidden", "step", "efficiency", "plain step")


class Asked(NamedTuple):
    """What is modelled."""

    numbers: list[int]  # N
    workers: list[int]  # T
    rates: Rates
    setting: Setting
    memory_limit: float  # of a worker, in GB
    device: str  # `cpu` or `gpu`


def plan_scaling(config: PretrainConfig, asked: Asked, output: str | None) -> Answer:
    """Models steps of a recipe whose batch stays the same, whatever T is.

    Where there are more workers than BN groups in a batch, groups are made smaller.

    Args:
      config: the recipe.
      asked: for which N and T, at which rates.
      output: PNG file of the picture, or None.

    Returns:
      `points`: for each N and T `seconds_per_step`, its `terms` and what of them is hidden, `efficiency` (the seconds
      of one worker over T times those of T; over those of T on one machine), `images_per_second`, `seconds_per_epoch`,
      `largest_term`, `memory_bytes`, `fits`, and the same of plain data parallelism (`plain_seconds_per_step`,
      `plain_seconds_per_epoch`, `plain_memory_bytes`, `plain_fits`).

    Raises:
      UserError: a value is out of range, or the picture cannot be written.
    """
    if output:
        refuse_picture_among_images(config.dataset, output, output)
        refuse_unwritable(output)
    planner.check_device(config, asked.device)
    for name, values in (("scaling_instances", asked.numbers), ("scaling_workers", asked.workers)):
        require_value(name, ",".join(map(str, values)), min(values) >= 1, "numbers of 1 or more")
    most = max(asked.workers)
    for num_instances in asked.numbers:
        is_possible = most <= num_instances <= planner.MAX_INSTANCES
        wanted = f"at least the {most} workers of --scaling_workers, and at most {planner.MAX_INSTANCES}"
        require_value("scaling_instances", num_instances, is_possible, wanted)
        planner.check(num_instances, most, asked.memory_limit, asked.device)
        config.validate_with_data(num_instances, most, flag="scaling_instances")
    points = [_point(config, n, workers, asked) for n in asked.numbers for workers in asked.workers]
    result: dict[str, Any] = {
        "batch_size": config.batch_size,
        "embedding_size": config.embedding_size,
        "rates": asked.rates._asdict(),
        **asked.setting._asdict(),
        "points": points,
    }
    picture = Picture(output, lambda path: draw_steps(path, points)) if output else None
    return Answer(result, _text(config, asked, points), picture=picture)


def for_workers(config: PretrainConfig, num_instances: int, num_workers: int) -> PretrainConfig:
    """The recipe with BN groups so small that each worker has one of a full batch of N instances, as even as can be.

    Raises:
      UserError: a batch has fewer instances than there are workers.
    """
    instances = planner.batch_of(config, num_instances, num_workers).instances
    sizes = (config.micro_batch, -(-instances // num_workers), instances // num_workers or 1)
    fitting = config.replace(micro_batch=next((size for size in sizes if -(-instances // size) >= num_workers), 1))
    fitting.validate(num_workers)
    return fitting


def _point(config: PretrainConfig, num_instances: int, num_workers: int, asked: Asked) -> dict[str, Any]:
    config = for_workers(config, num_instances, num_workers)
    modelled = (config, num_instances, num_workers, asked.rates, asked.setting)
    step, plain = step_model.step(*modelled), step_model.plain_step(*modelled)
    # Workers of one machine are no faster together than one who has it for himself.
    machines = 1 if asked.setting.one_machine else num_workers
    alone = step_model.step(config, num_instances, 1, asked.rates, asked.setting)
    threads = cores.threads_of_worker(1)
    plan = planner.make_plan(config, num_instances, num_workers, device=asked.device, threads=threads)
    limit = asked.memory_limit * GIGABYTE
    return {
        "num_instances": num_instances,
        "workers": num_workers,
        "micro_batch": config.micro_batch,
        "seconds_per_step": step.seconds,
        "efficiency": alone.seconds / (machines * step.seconds),
        "images_per_second": planner.batch_of(config, num_instances, num_workers).instances / step.seconds,
        "seconds_per_epoch": plan.steps_per_epoch * step.seconds,
        "largest_term": step.largest,
        "terms": step.terms,
        "hidden_seconds": step.hidden,
        "memory_bytes": plan.peak_bytes,
        "fits": plan.peak_bytes <= limit,
        "plain_seconds_per_step": plain.seconds,
        "plain_seconds_per_epoch": plan.steps_per_epoch * plain.seconds,
        "plain_memory_bytes": plan.data_parallel_peak_bytes,
        "plain_fits": plan.data_parallel_peak_bytes <= limit,
    }


def _text(config: PretrainConfig, asked: Asked, points: list[dict[str, Any]]) -> str:
    rates = asked.rates
    gigaflops, sums, gathers = (
        rate / 1e9 for rate in (rates.products_per_second, rates.sum_bytes_per_second, rates.gather_bytes_per_second)
    )
    who = "All workers of one machine together" if asked.setting.one_machine else "A worker"
    fewer = ", or all of fewer," if min(asked.numbers) < config.batch_size else ""
    lines = [
        f"{who}: {rates.images_per_second:.4g} images/s in the encoder, {gigaflops:.4g} GFLOP/s in the classifier",
        f"A message: {rates.latency_seconds * 1e3:.3g} ms for each doubling of workers; a worker sends"
        f" {sums:.3g} GB/s in sums and {gathers:.3g} in gathers",
        f"A batch: {config.batch_size} instances{fewer} with {config.views} views; D = {config.embedding_size}."
        " Seconds:",
    ]
    for num_instances in asked.numbers:
        title = f"N = {num_instances:,}"
        lines += ["", f"{title:>18}" + "".join(f"{name:>11}" for name in _TITLES) + "  largest term"]
        lines += [_line(point) for point in points if point["num_instances"] == num_instances]
    return "\n".join([*lines, "", *_notes(config, asked, points)])


def _line(point: dict[str, Any]) -> str:
    terms = [*(point["terms"][name] for name in TERMS), 0.0 - point["hidden_seconds"], point["seconds_per_step"]]
    cells = [f"{seconds:11.3f}" for seconds in terms]
    marks = ["*" if not point[name] else " " for name in ("fits", "plain_fits")]
    efficiency = f"{100 * point['efficiency']:9.0f} %"
    return (
        f"{point['workers']:8d} workers  {''.join(cells)}{marks[0]}{efficiency[1:]}"
        f"{point['plain_seconds_per_step']:11.3f}{marks[1]} {point['largest_term']}"
    )


def _notes(config: PretrainConfig, asked: Asked, points: list[dict[str, Any]]) -> list[str]:
    notes = ["Not in it: reading images, waiting for the slowest worker, and what crowds a network."]
    if not all(point["fits"] and point["plain_fits"] for point in points):
        notes.append(f"* does not fit into {asked.memory_limit:g} GB per worker (--memory_limit)")
    smaller = [point for point in points if point["micro_batch"] < config.micro_batch]
    if smaller:
        first = min(smaller, key=lambda point: point["workers"])
        notes.append(
            f"From {first['workers']} workers on BN groups are smaller than --micro_batch={config.micro_batch}, for"
            " each worker to have one"
        )
    return notes
