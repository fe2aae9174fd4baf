"""`docs/results.md`: the paper's numbers beside ours, rendered from the claims and the results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from instcls_tf.claims.figure import has_orderings
from instcls_tf.claims.ledger import KNN, LINEAR, METRICS, Claim, Ledger, Scale
from instcls_tf.claims.runs import run_of
from instcls_tf.claims.verdicts import FEWEST, NOT_RUN, Verdict, estimate_of, values_of, verdicts_of
from instcls_tf.sweep.summary import Estimate

MINUTES_FIGURE = "claims/minutes.png"  # beside the page
_TITLES = {KNN: "20-NN", LINEAR: "linear"}
_HEAD = """# The paper's claims, and ours

Rendered from [claims.yaml](claims.yaml) and [results.jsonl](results.jsonl) by `python -m scripts.reproduce --render`;
a test keeps it in step. Every row is of runs that were really made; `python -m scripts.reproduce --claim=ID` with
`--scale` makes those that are missing. Scales are never mixed. Claims share runs: rows with the same figures are of
the same pairs.

Accuracies are per cent of the test images, means over seeds: 20-NN, weighted, of backbone features, and *linear*,
logistic regression on stored features (`linear_eval --cached`), which is not the paper's protocol. 95 % intervals are
over seeds, of at least three of them, judged on the same test images. The standard error of one accuracy comes on
top: 0.5 points on the 10,000 images of CIFAR-10, 0.4 on those of clothes, and 1.6 to 2.4 on the 360 digits.
Differences are of pairs with the same seed, whose number stands behind them. A claim *holds* at a scale if all of its
interval is above 0, *does not hold* if all of it is below, and is *not resolved* in between, or of fewer than three
pairs; *so far* is said until all runs are made that the claim asks for.

Behind a difference marked with \\* are pairs whose two runs are by different versions of the code, or from different
processors. Rounding changed between some of them, and since commit 1f634ac, in the runs of December, BN's moving
statistics count a smaller last batch by its images: 29 instead of 128 on digits, 8 on the sets of 5,000. Minutes are
CPU time of a run's process, on processors that stand beside, of which two machines with the same name may still
differ by a factor of two.

What was chosen on which images: the batches, rates and views of runs with NT-Xent or eight views on other training
images ([how](measurements.md#short-runs)), 26 settings of ours and 8 of SimCLR; the rates and lengths of the preset
`cifar10` with its views, on images that are not recorded; the views and the class weights' rate of the preset
`digits` with an eye on its test digits; the temperature of SimCLR's plain rows, 0.2, by nobody (its paper has 0.1 on
ImageNet and 0.5 on CIFAR-10); all else by the published defaults. Presets are made for the paper's method: the rate
factor of the class weights is 4, and smoothing on digits over K = 20; NT-Xent of batches of 128 has two BN groups;
MoCo's key encoder, at its momentum of 0.999, is after 6 epochs of digits nearly the random one, and after 24 of
CIFAR-10 still by 38 %; PIC's windows leave out 16 % of the digits in 6 epochs.
"""


def render(ledger: Ledger, results: dict[str, dict[str, Any]]) -> str:
    """The page.

    Args:
      ledger: the claims.
      results: lines of `results.jsonl` by their keys.
    """
    lines = [_HEAD, *_summary(ledger, results)]
    if ledger.minutes is not None:
        lines += ["", f"![Accuracy against minutes of one core]({MINUTES_FIGURE})"]
    for claim in ledger.claims.values():
        lines += ["", f"## {claim.where}: `{claim.id}`", "", claim.says, "", *_paper(claim)]
        for scale in ledger.scales.values():
            lines += _section(claim, scale, results)
    lines += ["", "## Quantities that are no comparison of runs", "", "| where | the paper | ours |", "|---|---|---|"]
    lines += map(_elsewhere, ledger.elsewhere)
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
                        f"| `{claim.id}` | {scale.name} | {knn.told_epochs} | {knn.better} above {knn.worse} |"
                        f" {_difference(knn)} | {_difference(linear)} | {knn.word} |"
                    )


def _difference(verdict: Verdict) -> str:
    pairs = f"({verdict.pairs}, {verdict.diverged} diverged)" if verdict.diverged else f"({verdict.pairs})"
    if verdict.difference is None:
        return pairs
    difference = _percent(verdict.difference, "+", has_interval=verdict.pairs >= FEWEST)
    return f"{difference} {pairs}" + (r" \*" if verdict.is_mixed else "")


def _elsewhere(one: dict[str, str]) -> str:
    note = f" ({one['note']})" if "note" in one else ""
    return f"| {one['where']} | {one['quantity']} | [{one['ours']}]({one['ours']}){note} |"


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
    yield (
        "| run | epochs | images shown | forward passes per image | minutes of one core | processor | seeds | 20-NN |"
        " linear |"
    )
    yield "|---" * 9 + "|"
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
    knn, linear = (_percent(estimate_of(values[metric]), has_interval=len(lines) >= FEWEST) for metric in METRICS)
    epochs, passes = lines[0]["epochs"], lines[0]["passes_per_image"]
    shown = lines[0]["instances"] * epochs
    minutes = sum(map(cpu_seconds_of, lines)) / len(lines) / 60
    processors = ", ".join(sorted({short_name(line["processor"]) for line in lines}))
    return (
        f"| {name} | {epochs} | {shown:,} | {passes:.1f} | {minutes:.1f} | {processors} | {len(lines)} | {knn} |"
        f" {linear} |"
    )


def short_name(processor: str) -> str:
    """A processor's name without marks and fillers."""
    return " ".join(processor.replace("(R)", "").replace("Processor", "").split())


def _percent(estimate: Estimate | None, sign: str = "", has_interval: bool = True) -> str:
    if estimate is None:
        return ""
    interval = "" if estimate.interval is None or not has_interval else f" ± {100 * estimate.interval:.1f}"
    return f"{100 * estimate.mean:{sign}.1f}{interval}"
