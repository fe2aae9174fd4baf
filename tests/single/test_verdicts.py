"""What runs say of a claim: the verdict on an ordering, the rows of the page, the points of the picture."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from instcls_tf.claims import minutes, page, reproduce, verdicts
from instcls_tf.claims.ledger import KNN, LINEAR, Arm, Claim, Ledger, Scale
from instcls_tf.claims.runs import Run, run_of
from instcls_tf.sweep.summary import Estimate

MADE = {"commit": "abc", "processor": "Intel(R) Xeon(R) Processor"}
SCALE = Scale("small", "few images", {})
ARMS = {name: Arm(name, {"small": {"momentum": momentum}}, {1: 2.5}) for name, momentum in (("A", 0.1), ("B", 0.2))}
CLAIM = Claim("it", "Table 0", "A is above B.", "nobody's", ARMS, (("A", "B"),), {"small": (3,)}, {"small": 4})


def results_with(differences: list[float]) -> dict[str, dict]:
    lines = {}
    for seed, difference in enumerate(differences):
        base = 0.5 + 0.01 * seed**2
        for name, value in (("A", base + difference), ("B", base)):
            run = run_of(CLAIM.arms[name], SCALE, 3, seed)
            facts = {"cpu_seconds": 60.0, "epochs": 3, "instances": 1000, "passes_per_image": 6.0, **MADE}
            lines[run.key] = {"key": run.key, KNN: value, LINEAR: value, **facts}
    return lines


def results_of_scale(results: dict[str, dict]) -> dict[str, dict]:
    """With a line of another scale."""
    named = {key: {**line, "scale": SCALE.name} for key, line in results.items()}
    return {**named, "of another": {"scale": "large", KNN: 0.1, LINEAR: 0.1}}


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([0.02, 0.03, 0.025, 0.01], "holds"),
        ([-0.02, -0.03, -0.025, -0.01], "does not hold"),
        ([0.02, -0.03, 0.025, 0.01], "not resolved"),
        ([0.02], "not resolved"),
        ([], "not run"),
    ],
)
def test_the_verdict_is_that_of_a_paired_t_test(differences, word):
    (verdict,) = verdicts.verdicts_of(CLAIM, SCALE, KNN, results_with(differences))
    assert (verdict.word, verdict.pairs) == (word, len(differences))
    if len(differences) > 1:
        test = stats.ttest_1samp(differences, 0)
        assert verdict.difference.mean == pytest.approx(np.mean(differences))
        assert verdict.difference.interval == pytest.approx(test.confidence_interval().high - np.mean(differences))
        assert (test.pvalue < 0.05) == (word != "not resolved")


def test_pairs_are_of_the_same_seed():
    results = results_with([0.02, 0.03, 0.025, 0.01])
    results.pop(run_of(CLAIM.arms["B"], SCALE, 3, 2).key)
    (verdict,) = verdicts.verdicts_of(CLAIM, SCALE, KNN, results)
    assert verdict.pairs == 3
    assert verdict.difference.mean == pytest.approx(0.02)


def test_a_run_that_has_diverged_has_no_accuracy():
    results = results_with([0.02, 0.03, 0.025, 0.01])
    results[run_of(CLAIM.arms["B"], SCALE, 3, 2).key].update({KNN: None, LINEAR: None})
    (verdict,) = verdicts.verdicts_of(CLAIM, SCALE, KNN, results)
    assert (verdict.pairs, verdict.word) == (3, "not resolved")
    assert verdict.diverged == 1
    text = page.render(Ledger("claims.yaml", {"small": SCALE}, {"it": CLAIM}, ()), results)
    assert "8 runs, 0.1 hours of one core of training, of which 1 diverged" in text
    assert "(3, 1 diverged) |" in text
    answer = reproduce.answer_of([CLAIM], SCALE, results_of_scale(results))
    assert "3 pair(s), 1 with a run that has diverged: not resolved" in answer.text
    assert answer.result["runs"] == 8


def test_pairs_that_have_all_diverged_are_told():
    results = results_with([0.02, 0.03])
    for seed in range(2):
        results[run_of(CLAIM.arms["B"], SCALE, 3, seed).key].update({KNN: None, LINEAR: None})
    text = page.render(Ledger("claims.yaml", {"small": SCALE}, {"it": CLAIM}, ()), results)
    assert "| `it` | small | 3 | A above B | (0, 2 diverged) | (0, 2 diverged) | not resolved |" in text
    answer = reproduce.answer_of([CLAIM], SCALE, results_of_scale(results))
    assert "A above B, 0 pair(s), 2 with a run that has diverged: not resolved" in answer.text


def test_pairs_of_different_versions_are_marked():
    """What another version rounds otherwise, or counts otherwise, is not the method's; nor is another processor's."""
    for name in MADE:
        results = results_with([0.02, 0.03, 0.025, 0.01])
        results[run_of(CLAIM.arms["B"], SCALE, 3, 2).key][name] = "another"
        (verdict,) = verdicts.verdicts_of(CLAIM, SCALE, KNN, results)
        assert verdict.is_mixed
        text = page.render(Ledger("claims.yaml", {"small": SCALE}, {"it": CLAIM}, ()), results)
        assert r"| +2.1 ± 1.4 (4) \* | +2.1 ± 1.4 (4) \* |" in text
        # A pair of which one run is missing is none, and no pair that is there is mixed.
        del results[run_of(CLAIM.arms["A"], SCALE, 3, 2).key]
        (verdict,) = verdicts.verdicts_of(CLAIM, SCALE, KNN, results)
        assert (verdict.pairs, verdict.is_mixed) == (3, False)


def test_a_trial_of_fewer_seeds_is_one_so_far():
    results = results_with([0.02, 0.03, 0.025])
    words = {
        seeds: verdicts.verdicts_of(CLAIM.tried("small", seeds=seeds), SCALE, KNN, results)[0].word for seeds in (3, 4)
    }
    assert words == {3: "holds, so far", 4: "holds, so far"}
    whole = results_with([0.02, 0.03, 0.025, 0.02])
    assert verdicts.verdicts_of(CLAIM.tried("small", seeds=4), SCALE, KNN, whole)[0].word == "holds"


def test_an_interval_that_just_reaches_nothing():
    assert verdicts.word_of(Estimate(0.01, 0.01), 3, True) == "not resolved"
    assert verdicts.word_of(Estimate(0.01, 0.0099), 3, True) == "holds"


def test_a_verdict_of_fewer_pairs_than_the_claim_asks_for_is_one_so_far():
    assert verdicts.word_of(Estimate(0.01, 0.002), 3, False) == "holds, so far"
    assert verdicts.word_of(Estimate(-0.01, 0.002), 4, False) == "does not hold, so far"
    assert verdicts.word_of(Estimate(0.01, 0.02), 3, False) == "not resolved"
    (verdict,) = verdicts.verdicts_of(CLAIM, SCALE, KNN, results_with([0.02, 0.03, 0.025]))
    assert verdict.word == "holds, so far"


def test_a_verdict_without_the_pair_of_a_run_that_has_diverged_is_no_longer_so_far():
    results = results_with([0.02, 0.03, 0.025, 0.02])
    results[run_of(CLAIM.arms["B"], SCALE, 3, 2).key].update({KNN: None, LINEAR: None})
    (verdict,) = verdicts.verdicts_of(CLAIM, SCALE, KNN, results)
    assert (verdict.pairs, verdict.word) == (3, "holds")


def test_two_pairs_resolve_nothing():
    """That both differ by the same number of test images is no wonder."""
    assert verdicts.word_of(Estimate(0.01, 0.0), 2, True) == "not resolved"
    assert verdicts.word_of(Estimate(0.01, None), 1, True) == "not resolved"
    assert verdicts.word_of(None, 0, False) == "not run"


def test_a_row_of_the_page():
    ledger = Ledger("claims.yaml", {"small": SCALE}, {"it": CLAIM}, ())
    text = page.render(ledger, results_with([0.02, 0.03, 0.025, 0.01]))
    assert "8 runs, 0.1 hours" in text
    assert "| `it` | small | 3 | A above B | +2.1 ± 1.4 (4) | +2.1 ± 1.4 (4) | holds |" in text
    assert "| B | 3 | 3,000 | 6.0 | 1.0 | Intel Xeon | 4 | 53.5 ± 6.4 | 53.5 ± 6.4 |" in text
    assert "| A | 2.5 |" in text
    text = page.render(ledger, results_with([0.02, 0.03]))  # what two values are apart is hardly an interval
    assert "| B | 3 | 3,000 | 6.0 | 1.0 | Intel Xeon | 2 | 50.5 | 50.5 |" in text
    assert "| A above B | +2.5 (2) | +2.5 (2) | not resolved |" in text


def test_epochs_are_those_of_the_runs():
    """Of a claim about 3 epochs whose one arm is twice as long, the other too, and neither."""
    told = []
    for stretched in (("A",), ("A", "B"), ()):
        arms = {
            name: Arm(name, arm.flags, arm.paper, {"small": 2.0} if name in stretched else {})
            for name, arm in ARMS.items()
        }
        claim = dataclasses.replace(CLAIM, arms=arms)
        lines = [
            {"key": run_of(arm, SCALE, 3, 0).key, KNN: 0.5, LINEAR: 0.5, "cpu_seconds": 60.0, "epochs": 3}
            | {"instances": 1000, "passes_per_image": 6.0, **MADE}
            for arm in arms.values()
        ]
        text = page.render(
            Ledger("claims.yaml", {"small": SCALE}, {"it": claim}, ()), {line["key"]: line for line in lines}
        )
        told.append(text.partition("| `it` | small | ")[2].partition(" |")[0])
    assert told == ["6 and 3", "6", "3"]


def test_points_of_accuracy_against_minutes():
    """Of one recipe, whatever its claim: lengths in order, none of a run that has diverged."""
    scale = Scale("digits", "digits", {"momentum": 0.5})

    def line(flags: dict, epochs: int, seed: int, value: float | None, seconds: float) -> dict:
        run = Run("digits", {**scale.flags, **flags}, epochs, seed)
        facts = {"scale": "digits", "recipe": run.recipe, "epochs": epochs, "cpu_seconds": seconds, KNN: value, **MADE}
        return {run.key: json.loads(json.dumps(facts))}

    results = {
        **line({"smoothing": 0}, 8, 0, 0.5, 60.0),
        **line({"smoothing": 0}, 8, 1, 0.25, 180.0),
        **line({"smoothing": 0}, 8, 2, None, 6.0),
        **line({"smoothing": 0}, 2, 0, 0.125, 30.0),
        **line({"smoothing": 0}, 4, 0, None, 30.0),
        **line({"smoothing": 0.1}, 8, 0, 0.75, 60.0),
    }
    results["elsewhere"] = {**next(iter(results.values())), "scale": "cifar10"}
    assert minutes.points_of({"smoothing": 0}, scale, results) == [
        (2, [0.5], [0.125], ["Intel Xeon"]),
        (8, [1.0, 3.0], [0.5, 0.25], ["Intel Xeon"] * 2),
    ]
    assert minutes.points_of({"smoothing": 0.5}, scale, results) == []
