"""What a sweep has found out: means with 95 % intervals, and differences between arms with the same seeds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from instcls_tf.sweep.spec import Setting, Spec
from instcls_tf.sweep.trials import FINAL, SEARCH, Trial, best_setting, final_trials, search_trials

_LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean, and half of its 95 % interval; None of a single value."""

    mean: float
    interval: float | None


class Arm(NamedTuple):
    """An arm's best setting, None while it is not known, with the finished trials of it by their seeds."""

    name: str
    setting: Setting | None
    done: int
    failed: int
    wanted: int
    trials: dict[int, tuple[Trial, dict[str, Any]]]

    @property
    def accuracies(self) -> dict[int, float]:
        """By seeds."""
        return {seed: result["accuracy"] for seed, (_, result) in self.trials.items()}


def mean_with_interval(values: list[float]) -> Estimate:
    """The mean, with the interval of Student's t distribution."""
    if len(values) < 2:
        return Estimate(float(np.mean(values)), None)
    from scipy import stats

    deviation = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(float(np.mean(values)), float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * deviation)


def paired_difference(values: dict[int, float], others: dict[int, float]) -> Estimate | None:
    """How far `values` are above `others` over the seeds that both have; None if there is none."""
    differences = [values[seed] - others[seed] for seed in values if seed in others]
    return mean_with_interval(differences) if differences else None


def stage_shown(spec: Spec, results: list[dict]) -> str:
    """The final stage as soon as one of its trials is finished, else the search."""
    keys = {result["key"] for result in results}
    return FINAL if any(trial.key in keys for trial in final_trials(spec, results)) else SEARCH


def arms_of(spec: Spec, results: list[dict]) -> list[Arm]:
    """The arms as far as they are, in the stage that is shown."""
    stage = stage_shown(spec, results)
    by_key = {result["key"]: result for result in results}
    trials = final_trials(spec, results) if stage == FINAL else search_trials(spec)
    arms = []
    for name in spec.arms:
        best = best_setting(spec, name, results)
        own = [trial for trial in trials if trial.setting.arm == name]
        done = [(trial, by_key[trial.key]) for trial in own if trial.key in by_key]
        failed = sum(result["accuracy"] is None for _, result in done)
        of_best = {
            trial.seed: (trial, result)
            for trial, result in done
            if best is not None and trial.setting == best and result["accuracy"] is not None
        }
        arms.append(Arm(name, best, len(done), failed, len(own), of_best))
    return arms


def result_of(spec: Spec, results: list[dict]) -> dict[str, Any]:
    """The summary for programs; accuracies are fractions."""
    arms = arms_of(spec, results)
    stage = stage_shown(spec, results)
    return {"stage": stage, "arms": {arm.name: _row(arm, arms[0]) for arm in arms}}


def _row(arm: Arm, first: Arm) -> dict[str, Any]:
    row: dict[str, Any] = {"finished": arm.done, "failed": arm.failed, "trials": arm.wanted}
    if not arm.trials or arm.setting is None:
        return row
    lines = [result for _, result in arm.trials.values()]
    accuracy = mean_with_interval(list(arm.accuracies.values()))
    row |= {"flags": arm.setting.flags, "seeds": list(arm.trials)}
    row |= {name: float(np.mean([line[name] for line in lines])) for name in ("epochs", "minutes")}
    row |= {"accuracy": accuracy.mean, "interval": accuracy.interval}
    difference = paired_difference(arm.accuracies, first.accuracies) if arm.name != first.name else None
    if difference is not None:
        row |= {"difference": difference.mean, "difference_interval": difference.interval}
    return row


def table_of(spec: Spec, results: list[dict]) -> str:
    """The summary for people, in Markdown."""
    result = result_of(spec, results)
    first = next(iter(spec.arms))
    judged = "the test split" if result["stage"] == FINAL else "the validation slice of train"
    lines = [
        f"20-NN on {judged}, percent, with 95 % intervals over seeds",
        "",
        f"| arm | trials | best flags | epochs | minutes | 20-NN | against {first} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["arms"].items():
        trials = f"{row['finished']} of {row['trials']}" + (f", {row['failed']} failed" if row["failed"] else "")
        if "accuracy" not in row:
            lines.append(f"| {name} | {trials} | | | | | |")
            continue
        accuracy, against = _percent(row["accuracy"], row["interval"]), ""
        if "difference" in row:
            against = _percent(row["difference"], row["difference_interval"], sign="+")
        flags = " ".join(f"--{flag}={value}" for flag, value in row["flags"].items())
        epochs, minutes = f"{row['epochs']:g}", f"{row['minutes']:.1f}"
        lines.append(f"| {name} | {trials} | {flags} | {epochs} | {minutes} | {accuracy} | {against} |")
    processors = sorted({line["processor"] for line in results})
    if len(processors) > 1:
        lines += ["", f"Measured on different processors, whose minutes differ: {'; '.join(processors)}"]
    return "\n".join(lines)


def _percent(mean: float, interval: float | None, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f}" + ("" if interval is None else f" ± {100 * interval:.1f}")
