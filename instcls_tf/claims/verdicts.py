"""What the runs say of an ordering: mean and 95 % interval of paired differences, and whether the claim holds."""

from __future__ import annotations

from typing import Any, NamedTuple

from instcls_tf.claims.ledger import Arm, Claim, Scale
from instcls_tf.claims.runs import run_of
from instcls_tf.sweep.summary import Estimate, mean_with_interval, paired_difference

# Fewer agree by chance: accuracies are multiples of one test image.
FEWEST_PAIRS = 3
HOLDS, DOES_NOT, NOT_RESOLVED, NOT_RUN = "holds", "does not hold", "not resolved", "not run"
# An interval that is looked at before all pairs are there is one of several looks.
SO_FAR = ", so far"


class Verdict(NamedTuple):
    """Of one ordering at one length; `difference` is of those seeds that both arms have."""

    better: str
    worse: str
    epochs: int
    metric: str
    difference: Estimate | None
    pairs: int
    word: str


def values_of(
    arm: Arm, scale: Scale, epochs: int, metric: str, results: dict[str, dict[str, Any]], seeds: int
) -> dict[int, float]:
    """The accuracies of an arm by seeds, fractions; none of those that have diverged.

    Args:
      arm: of a claim.
      scale: of the runs.
      epochs: their length.
      metric: one of `ledger.METRICS`.
      results: lines of `results.jsonl` by their keys.
      seeds: how many the claim wants.
    """
    found = {}
    for seed in range(seeds):
        line = results.get(run_of(arm, scale, epochs, seed).key)
        if line is not None and line[metric] is not None:
            found[seed] = float(line[metric])
    return found


def estimate_of(values: dict[int, float]) -> Estimate | None:
    """Mean and interval; None without values."""
    return mean_with_interval(list(values.values())) if values else None


def verdicts_of(claim: Claim, scale: Scale, metric: str, results: dict[str, dict[str, Any]]) -> list[Verdict]:
    """One for each length and ordering of the claim at that scale."""
    seeds, found = claim.seeds.get(scale.name, 0), []
    for epochs in claim.epochs.get(scale.name, ()):
        for better, worse in claim.orderings:
            values = [values_of(claim.arms[name], scale, epochs, metric, results, seeds) for name in (better, worse)]
            difference = paired_difference(*values)
            pairs = len(values[0].keys() & values[1].keys())
            runs = [run_of(claim.arms[name], scale, epochs, seed) for name in (better, worse) for seed in range(seeds)]
            all_made = all(run.key in results for run in runs)
            found.append(
                Verdict(better, worse, epochs, metric, difference, pairs, word_of(difference, pairs, all_made))
            )
    return found


def word_of(difference: Estimate | None, pairs: int, all_made: bool) -> str:
    """A claim holds if all of the interval is above 0, and does not if all of it is below; it takes three pairs.

    Args:
      difference: of the pairs.
      pairs: how many there are, without those of a run that has diverged.
      all_made: whether all runs are made that the claim asks for, diverged or not; of fewer it is said so.
    """
    if difference is None:
        return NOT_RUN
    mean, interval = difference
    if pairs < FEWEST_PAIRS or interval is None or abs(mean) <= interval:
        return NOT_RESOLVED
    return (HOLDS if mean > 0 else DOES_NOT) + ("" if all_made else SO_FAR)
