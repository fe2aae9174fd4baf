"""The answer of `plan`: what a run needs, as a table, as JSON and as a picture."""

from __future__ import annotations

from instcls_tf import cores, planner
from instcls_tf.config import PretrainConfig

SHARDED, DATA_PARALLEL = "this design", "plain data parallelism"


def plan_run(
    config: PretrainConfig, num_instances: int, num_workers: int, memory_limit: float, device: str, output: str | None
) -> tuple[str, dict]:
    """Plans a run and looks for the largest one that fits.

    Args:
      config: the recipe.
      num_instances: N.
      num_workers: T.
      memory_limit: of a worker, in GB.
      device: `cpu` or `gpu`; a CPU worker has as many threads as this machine has cores.
      output: PNG file of the picture, or None.

    Returns:
      A readable text, and the values of the JSON object.

    Raises:
      UserError: a value is out of range, or the picture cannot be written.
    """
    limit = round(memory_limit * planner.GIGABYTE)

    def planned(n: int) -> planner.Plan:
        return planner.make_plan(config, n, num_workers, device=device, threads=cores.threads_of_worker(1))

    peaks = {SHARDED: lambda n: planned(n).peak_bytes, DATA_PARALLEL: lambda n: planned(n).data_parallel_peak_bytes}
    largest = {name: planner.largest_num_instances(peak, limit, num_workers) for name, peak in peaks.items()}
    if output:
        from instcls_tf.report.memory_curves import Curve, draw_memory

        curves = [Curve(name, peaks[name], largest[name]) for name in (DATA_PARALLEL, SHARDED)]
        draw_memory(output, curves, [limit], f"{num_workers} workers, {memory_limit:g} GB each: the largest N")
    plan = planned(num_instances)
    answer = {
        "num_instances": num_instances,
        "workers": num_workers,
        "memory_limit_bytes": limit,
        "fits": plan.peak_bytes <= limit,
        **plan._asdict(),
        "largest_num_instances": largest[SHARDED],
        "data_parallel_largest_num_instances": largest[DATA_PARALLEL],
        "ratio": largest[SHARDED] / largest[DATA_PARALLEL] if largest[DATA_PARALLEL] else None,
    }
    return _text(plan, answer, memory_limit), answer


def _text(plan: planner.Plan, answer: dict, memory_limit: float) -> str:
    names = list(dict.fromkeys([*plan.memory, *plan.data_parallel_memory]))
    lines = [f"{'Memory of a worker, GB':34}{SHARDED:>14}{DATA_PARALLEL:>26}"]
    for name in names:
        parts = [_gigabytes(memory.get(name)) for memory in (plan.memory, plan.data_parallel_memory)]
        lines.append(f"  {name:32}{parts[0]:>14}{parts[1]:>26}")
    peaks = [_gigabytes(plan.peak_bytes), _gigabytes(plan.data_parallel_peak_bytes)]
    lines.append(f"  {'at the peak':32}{peaks[0]:>14}{peaks[1]:>26}")
    if plan.search_bytes:
        search = _gigabytes(plan.search_bytes)
        lines.append(f"  ({search} GB while hard negatives are searched, with neither views nor activations there)")
    lines += ["", f"Sent by a worker, MB{'per step':>28}"]
    lines += [f"  {name:32}{sent / 1e6:14.2f}" for name, sent in plan.wire_step.items()]
    per_epoch = sum(plan.wire_epoch.values())
    lines += [
        f"  {'in all':32}{sum(plan.wire_step.values()) / 1e6:14.2f}",
        f"  per epoch of {plan.steps_per_epoch} steps: {per_epoch / 1e9:.2f} GB, of which"
        f" {plan.wire_epoch.get('hard negatives: class weights', 0) / 1e9:.2f} GB for the search of hard negatives",
        f"  before training, for the contrastive prior: {plan.wire_prior / 1e9:.2f} GB",
        "",
        f"Largest N in {memory_limit:g} GB per worker: {answer['largest_num_instances']:,} with this design,"
        f" {answer['data_parallel_largest_num_instances']:,} with plain data parallelism"
        + (f" ({answer['ratio']:.1f} times)" if answer["ratio"] else ""),
        f"N = {answer['num_instances']:,} {'fits' if answer['fits'] else 'DOES NOT FIT'}: {peaks[0]} of"
        f" {memory_limit:g} GB",
    ]
    return "\n".join(lines)


def _gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / planner.GIGABYTE:.3f}"
