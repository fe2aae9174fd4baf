"""`docs/results.md`: the paper's numbers beside ours, rendered from the claims and the results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from instcls_tf.claims.figure import has_orderings
from instcls_tf.claims.ledger import KNN, LINEAR, METRICS, Claim, Ledger, Scale
from instcls_tf.claims.runs import run_of
from instcls_tf.claims.verdicts import NOT_RUN, Verdict, estimate_of, values_of, verdicts_of
from instcls_tf.sweep.summary import Estimate

_TITLES = {KNN: "20-NN", LINEAR: "linear"}
_HEAD = """# The paper's claims, and ours

Rendered from [claims.yaml](claims.yaml) and [results.jsonl](results.jsonl) by `python -m scripts.reproduce --render`;
a test keeps it in step. Every row is of runs that were really made; `python -m scripts.reproduce --claim=ID` with
`--scale` makes those that are missing. Accuracies are per cent, means over seeds with 95 % intervals; differences are
of pairs with the same seed, whose number stands behind them. A claim *holds* at a scale if all of its interval is above
0, *does not hold* if all of it is below, and is *not resolved* in between, or of fewer than three pairs; *so far* is
said until all runs are made that the claim asks for. Intervals are over seeds, judged on the same test images.
Scales are never mixed. Minutes are CPU time of a run's process; they compare only between runs of the same `processor`,
which the results name.

What was chosen on which images: the batches, rates and views of runs with NT-Xent or eight views on other training
images ([how](measurements.md#short-runs)); the views and the class weights' rate of the preset `digits` with an eye on
its test digits; all else by the presets, whose history is not recorded, and by the published defaults. Presets are made
for the paper's method: the class weights of PIC and DIET take their rate factor of 4 as well, where 1 is published;
NT-Xent of batches of 128 has two BN groups; MoCo's key encoder, at its momentum of 0.999, is after 6 epochs of digits
nearly the random one, and after 24 of CIFAR-10 still by 38 %; PIC's windows leave out 15 % of the images in 6 epochs.
"""


def render(ledger: Ledger, results: dict[str, dict[str, Any]]) -> str:
    """The page.

    Args:
      ledger: the claims.
      results: lines of `results.jsonl` by their keys.
    """
    lines = [_HEAD, *_summary(ledger, results)]
    for claim in ledger.claims.values():
        lines += ["", f"## {claim.where}: `{claim.id}`", "", claim.says, "", *_paper(claim)]
        for scale in ledger.scales.values():
            lines += _section(claim, scale, results)
    lines += ["", "## Quantities that are no comparison of runs", "", "| where | the paper | ours |", "|---|---|---|"]
    lines += [f"| {one['where']} | {one['quantity']} | [{one['ours']}]({one['ours']}) |" for one in ledger.elsewhere]
    return "\n".join([*lines, ""])


def _summary(ledger: Ledger, results: dict[str, dict[str, Any]]) -> Iterator[str]:
    seconds = sum(map(cpu_seconds_of, results.values()))
    diverged = sum(line[KNN] is None for line in results.values())
    yield f"{len(results)} runs, {seconds / 3600:.1f} hours of one core of training" + (
        f", of which {diverged} diverged." if diverged else "."
    )
    yield ""
    yield "| claim | scale | epochs | ordering | difference in 20-NN | in linear accuracy | 20-NN says |"
    yield "|---|---|---|---|---|---|---|"
    for claim in ledger.claims.values():
        for scale in ledger.scales.values():
            pairs = zip(*(verdicts_of(claim, scale, metric, results) for metric in METRICS))
            for knn, linear in pairs:
                if knn.word != NOT_RUN:
                    yield (
                        f"| `{claim.id}` | {scale.name} | {knn.epochs} | {knn.better} above {knn.worse} |"
                        f" {_difference(knn)} | {_difference(linear)} | {knn.word} |"
                    )


def _difference(verdict: Verdict) -> str:
    return "" if verdict.difference is None else f"{_percent(verdict.difference, '+')} ({verdict.pairs})"


def _paper(claim: Claim) -> Iterator[str]:
    lengths = sorted({epochs for arm in claim.arms.values() for epochs in arm.paper})
    yield f"The paper: {claim.protocol}."
    if not lengths:
        return
    yield ""
    yield "| | " + " | ".join(f"{epochs} epochs" for epochs in lengths) + " |"
    yield "|---" * (len(lengths) + 1) + "|"
    for arm in claim.arms.values():
        if arm.paper:
            yield f"| {arm.name} | " + " | ".join(str(arm.paper.get(epochs, "")) for epochs in lengths) + " |"


def _section(claim: Claim, scale: Scale, results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What was measured of a claim at a scale; nothing where no run is made."""
    seeds = claim.seeds.get(scale.name, 0)
    rows = []
    for epochs in claim.epochs.get(scale.name, ()):
        for arm in claim.arms.values():
            values = {metric: values_of(arm, scale, epochs, metric, results, seeds) for metric in METRICS}
            if values[KNN]:
                lines = [results[run_of(arm, scale, epochs, seed).key] for seed in values[KNN]]
                rows.append(_row(arm.name, values, lines))
    if not rows:
        return
    yield ""
    yield f"Measured on {scale.title}:"
    yield ""
    yield "| run | epochs | images shown | forward passes per image | minutes of one core | seeds | 20-NN | linear |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from rows
    if has_orderings(claim, scale, results):
        yield ""
        yield f"![Differences of pairs at the scale {scale.name}]({figure_name(claim, scale)})"


def cpu_seconds_of(line: dict[str, Any]) -> float:
    """CPU time of a result, or of an attempt; of earlier versions' wall time, which on one core is no less."""
    return line["cpu_seconds"] if "cpu_seconds" in line else line["seconds"]


def figure_name(claim: Claim, scale: Scale) -> str:
    """The file of a claim's figure, beside the page."""
    return f"claims/{claim.id}_{scale.name}.png"


def _row(name: str, values: dict[str, dict[int, float]], lines: list[dict[str, Any]]) -> str:
    estimates = {metric: estimate_of(values[metric]) for metric in METRICS}
    knn, linear = (_percent(estimates[metric]) for metric in METRICS)
    epochs, passes = lines[0]["epochs"], lines[0]["passes_per_image"]
    shown = lines[0]["instances"] * epochs
    minutes = sum(map(cpu_seconds_of, lines)) / len(lines) / 60
    return f"| {name} | {epochs} | {shown:,} | {passes:.1f} | {minutes:.1f} | {len(lines)} | {knn} | {linear} |"


def _percent(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return ""
    interval = "" if estimate.interval is None else f" ± {100 * estimate.interval:.1f}"
    return f"{100 * estimate.mean:{sign}.1f}{interval}"
