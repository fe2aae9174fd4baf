"""What the runs say of an ordering: mean and 95 % interval of paired differences, and whether the claim holds."""

from __future__ import annotations

from typing import Any, NamedTuple

from instcls_tf.claims.ledger import Arm, Claim, Scale
from instcls_tf.claims.runs import run_of
from instcls_tf.sweep.summary import Estimate, mean_with_interval, paired_difference

# Pairs, or values with an interval of their own. Fewer agree by chance: accuracies are multiples of one test image.
FEWEST = 3
HOLDS, DOES_NOT, NOT_RESOLVED, NOT_RUN = "holds", "does not hold", "not resolved", "not run"
# An interval that is looked at before all pairs are there is one of several looks.
SO_FAR = ", so far"


class Verdict(NamedTuple):
    """Of one ordering at one length; `difference` is of those seeds that both arms have.

    `epochs` is the claim's length, `lengths` are those of the better's and the worse's runs, which may be stretched.
    `diverged` counts the pairs that are missing because a run of them has diverged; `is_mixed` says that the two runs
    of a pair are by different versions of the code, or from different processors.
    """

    better: str
    worse: str
    epochs: int
    lengths: tuple[int, int]
    metric: str
    difference: Estimate | None
    pairs: int
    diverged: int
    is_mixed: bool
    word: str

    @property
    def told_epochs(self) -> str:
        """`24`, or `36 and 24` where the two are of different lengths."""
        return " and ".join(str(length) for length in dict.fromkeys(self.lengths))


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
    found = []
    for epochs in claim.epochs.get(scale.name, ()):
        for better, worse in claim.orderings:
            found.append(_verdict(claim, scale, epochs, (better, worse), metric, results))
    return found


def _verdict(
    claim: Claim, scale: Scale, epochs: int, names: tuple[str, str], metric: str, results: dict[str, dict[str, Any]]
) -> Verdict:
    seeds = claim.seeds[scale.name]
    arms = [claim.arms[name] for name in names]
    values = [values_of(arm, scale, epochs, metric, results, seeds) for arm in arms]
    difference = paired_difference(*values)
    made = [[results.get(run_of(arm, scale, epochs, seed).key) for arm in arms] for seed in range(seeds)]
    of_pairs = [
        [line for line in lines if line is not None]
        for seed, lines in enumerate(made)
        if all(seed in of_arm for of_arm in values)
    ]
    diverged = sum(any(line is not None and line[metric] is None for line in lines) for lines in made)
    is_whole = claim.is_whole and all(line is not None for lines in made for line in lines)
    return Verdict(
        *names,
        epochs,
        (arms[0].epochs(scale.name, epochs), arms[1].epochs(scale.name, epochs)),
        metric,
        difference,
        pairs=len(of_pairs),
        diverged=diverged,
        is_mixed=any(len({(line["commit"], line["processor"]) for line in lines}) > 1 for lines in of_pairs),
        word=NOT_RESOLVED if difference is None and diverged else word_of(difference, len(of_pairs), is_whole),
    )


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
    if pairs < FEWEST or interval is None or abs(mean) <= interval:
        return NOT_RESOLVED
    return (HOLDS if mean > 0 else DOES_NOT) + ("" if all_made else SO_FAR)
