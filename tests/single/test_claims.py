"""The ledger of claims: what it says parses and can be planned, what was measured stands on the page as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flags.sweep import config_of
from instcls_tf.claims import page, reproduce, verdicts
from instcls_tf.claims.ledger import KNN, LINEAR, Arm, Claim, Scale, read_ledger
from instcls_tf.claims.runs import Run, hours_of, passes_per_image, run_of, runs_of
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.plan import planner
from instcls_tf.run.workdir import begin_run
from instcls_tf.sweep.jobs import Ended, Job
from instcls_tf.sweep.summary import Estimate
from tests.commands import ROOT, run_script

CLAIMS, RESULTS, PAGE = (str(ROOT / "docs" / name) for name in ("claims.yaml", "results.jsonl", "results.md"))
INSTANCES = {"digits": 1437, "cifar10": 5000, "fashion": 5000, "imagenet": 1_281_167}
RECIPES = {"digits": 12, "cifar10": 12, "fashion": 5, "imagenet": 12}  # at least
LEDGER = read_ledger(CLAIMS)


def all_runs() -> list[Run]:
    return [
        run for claim in LEDGER.claims.values() for scale in LEDGER.scales.values() for run in runs_of(claim, scale)
    ]


@pytest.mark.parametrize("scale", list(LEDGER.scales))
def test_every_run_is_a_recipe_that_can_be_planned(scale):
    dataset = {"cifar10": "folder:/data/cifar5k", "fashion": "folder:/data/fashion5k"}.get(scale)
    first_seeds = {run.key: run for run in all_runs() if run.scale == scale and run.seed == 0}
    assert len(first_seeds) >= RECIPES[scale]
    for run in first_seeds.values():
        config = config_of(run.words(dataset, "runs/x"))
        config.validate()
        config.validate_with_data(INSTANCES[scale])
        # What the key is made of is what the command line says.
        assert run.config == config.replace(dataset=run.config.dataset, workdir="", gauge_every=1, report=True)
        assert (config.epochs, config.workdir) == (run.epochs, "runs/x")
        if config.method == "instance":
            workers = LEDGER.scales[scale].workers or 1
            planned = planner.make_plan(
                config, INSTANCES[scale], workers, device="gpu" if workers > 1 else "cpu", threads=1
            )
            assert planned.peak_bytes < 32e9


def test_claims_share_runs():
    """The full method of Table 2 is that of Table 6; Table 4's arms without smoothing are two of Table 2's."""
    keys = {
        claim: {run.key for run in runs_of(LEDGER.claims[claim].tried("cifar10", epochs=24), LEDGER.scales["cifar10"])}
        for claim in ("table2_parts", "table4_prior", "table6_rivals")
    }
    assert len(keys["table2_parts"] & keys["table6_rivals"]) == 5
    assert keys["table4_prior"] < keys["table2_parts"]


def test_a_key_stays_what_it_was():
    """Or every run that was made would be forgotten."""
    run = Run("digits", {"smoothing": 0.0, "learning_rate": 0.1}, 6, 0)
    assert run.key == "eb7075e9"
    others = [run._replace(scale="cifar10"), run._replace(epochs=7), run._replace(seed=1), run._replace(flags={})]
    assert len({other.key for other in [run, *others]}) == 5


def test_a_changed_preset_makes_other_runs(tmp_path):
    preset = tmp_path / "a.flags"
    keys = []
    for text in ("--learning_rate=0.1\n", "# the same\n--learning_rate=0.10\n", "--learning_rate=0.2\n"):
        preset.write_text(text)
        keys.append(Run("digits", {"flagfile": str(preset), "smoothing": 0.0}, 6, 0).key)
    assert keys[0] == keys[1] == "eb7075e9" != keys[2]


def test_runs_of_other_images_are_not_taken_for_made(tmp_path):
    scale, claims = LEDGER.scales["digits"], LEDGER.chosen("table4_prior")
    line = {"key": "of another set", "scale": "digits", "images": "00", "instances": 3, "epochs": 1, "cpu_seconds": 1.0}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    at = reproduce.Places(str(tmp_path / "runs"), str(tmp_path / "results.jsonl"), None)
    with pytest.raises(UserError, match="--dataset=digits: has not the images of the runs of --scale=digits"):
        reproduce.reproduce(claims, scale, at)
    assert not (tmp_path / "runs").exists()


def test_an_arm_may_have_longer_runs_than_its_claim_says():
    longer = Arm("longer", {"small": {}}, {}, {"small": 1.5})
    assert run_of(longer, SCALE, 25, 0).epochs == 38
    assert run_of(longer, SCALE, 25, 0).key == run_of(Arm("plain", {"small": {}}, {}), SCALE, 38, 0).key
    assert longer.epochs("another scale", 25) == 25


def test_passes_per_image():
    def passes(**changes) -> float:
        return passes_per_image(PretrainConfig(**changes))

    assert passes(classifier_init="random") == passes(method="simclr") == 2 * (1 + 2)
    assert passes(epochs=10) == 6 + 2 / 10  # BN burn-in and prior
    assert passes(epochs=10, classifier_init="raw_fixed_bn") == 6 + 1 / 10  # no burn-in
    assert passes(method="moco_v2") == 1 + 2 + 1
    assert passes(method="pic", views=1) == 3


# ------------------------------------------------------------------------------------------------- what runs say


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
    text = page.render(type(LEDGER)("claims.yaml", {"small": SCALE}, {"it": CLAIM}, ()), results)
    assert "8 runs, 0.1 hours of one core of training, of which 1 diverged" in text
    assert "(3, 1 diverged) |" in text
    answer = reproduce.answer_of([CLAIM], SCALE, results_of_scale(results))
    assert "3 pair(s), 1 with a run that has diverged: not resolved" in answer.text
    assert answer.result["runs"] == 8


def test_a_line_of_a_run_that_diverged_before_its_first_log_line(tmp_path):
    run = runs_of(LEDGER.claims["table4_prior"], LEDGER.scales["digits"])[0]
    job = Job("it", str(tmp_path), run.commands(None, str(tmp_path)))
    begin_run(run.config.replace(workdir=str(tmp_path)))
    sentence = "error: step 1: the loss is nan, and the step was not taken on any worker; if the run diverged, it needs"
    attempt = {"command": "-m scripts.pretrain", "seconds": 9.0, "cpu_seconds": 8.0, "status": 1, "commit": "abc"}
    (tmp_path / "attempts.jsonl").write_text(json.dumps(attempt) + "\n")
    line = json.loads(json.dumps(reproduce._line(run, Ended(job, 1, sentence)), allow_nan=False))
    assert (line[KNN], line[LINEAR], line["images_per_second"], line["seconds"]) == (None, None, None, 0)
    assert (line["cpu_seconds"], line["commit"], line["key"]) == (8.0, "abc", run.key)
    with pytest.raises(UserError, match="the run failed"):
        reproduce._line(run, Ended(job, 1, "error: no space left"))


def test_pairs_of_different_versions_are_marked():
    """What another version rounds otherwise, or counts otherwise, is not the method's; nor is another processor's."""
    for name in MADE:
        results = results_with([0.02, 0.03, 0.025, 0.01])
        results[run_of(CLAIM.arms["B"], SCALE, 3, 2).key][name] = "another"
        (verdict,) = verdicts.verdicts_of(CLAIM, SCALE, KNN, results)
        assert verdict.is_mixed
        text = page.render(type(LEDGER)("claims.yaml", {"small": SCALE}, {"it": CLAIM}, ()), results)
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
    ledger = type(LEDGER)("claims.yaml", {"small": SCALE}, {"it": CLAIM}, ())
    text = page.render(ledger, results_with([0.02, 0.03, 0.025, 0.01]))
    assert "8 runs, 0.1 hours" in text
    assert "| `it` | small | 3 | A above B | +2.1 ± 1.4 (4) | +2.1 ± 1.4 (4) | holds |" in text
    assert "| B | 3 | 3,000 | 6.0 | 1.0 | Intel Xeon | 4 | 53.5 ± 6.4 | 53.5 ± 6.4 |" in text
    assert "| A | 2.5 |" in text
    text = page.render(ledger, results_with([0.02, 0.03]))  # what two values are apart is hardly an interval
    assert "| B | 3 | 3,000 | 6.0 | 1.0 | Intel Xeon | 2 | 50.5 | 50.5 |" in text
    assert "| A above B | +2.5 (2) | +2.5 (2) | not resolved |" in text


def test_the_page_is_that_of_the_results():
    with open(PAGE, encoding="utf-8") as file:
        assert file.read() == page.render(LEDGER, reproduce.read_results(RESULTS)), (
            "scripts.reproduce --render writes it"
        )


def test_results_are_of_runs_of_the_ledger():
    """A run that no claim asks for any more is a row that nobody reads."""
    wanted = {run.key: run for run in all_runs()}
    for key, line in reproduce.read_results(RESULTS).items():
        assert key in wanted
        assert (line["scale"], line["epochs"], line["seed"]) == wanted[key][:1] + wanted[key][2:]
        assert line["instances"] == INSTANCES[line["scale"]]
        assert line["commit"] and line["processor"] and line["cpu_seconds"] > 0


# ------------------------------------------------------------------------------------------------------ mistakes


def written(tmp_path, change) -> str:
    import yaml

    content = yaml.safe_load(Path(CLAIMS).read_text())
    change(content)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content.pop("scales"), "cannot understand it (KeyError: 'scales')"),
        (lambda content: content["claims"].append(content["claims"][0]), "two claims have the same id"),
        (lambda content: content["claims"][0].update(orderings=[["prior", "postior"]]), "names the arm 'postior'"),
        (lambda content: content["claims"][0]["arms"]["prior"].update(cifar=3), "'cifar' is no scale"),
        (lambda content: content["claims"][0]["arms"]["prior"].update(stretch={"cifar": 2}), "stretch names a scale"),
        (lambda content: content["claims"][0]["seeds"].pop("digits"), "epochs and seeds are not of the same scales"),
    ],
)
def test_a_wrong_ledger_is_refused(tmp_path, change, problem):
    with pytest.raises(UserError) as refusal:
        read_ledger(written(tmp_path, change))
    assert problem in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_no_yaml(tmp_path):
    (tmp_path / "claims.yaml").write_text("a: [")
    with pytest.raises(UserError, match="--claims="):
        read_ledger(str(tmp_path / "claims.yaml"))


def test_unknown_claims_and_scales():
    with pytest.raises(UserError, match=r"--claim=table99: is not in .*, wanted one of all, table4_prior, "):
        LEDGER.chosen("table99")
    with pytest.raises(UserError, match="--scale=cifar: wanted one of digits, cifar10, fashion, imagenet"):
        LEDGER.scale("cifar")


def test_a_claim_at_a_scale_that_it_has_not(tmp_path):
    finished = run_script("reproduce", "--claim=precision", "--dataset=folder:x", f"--workdir={tmp_path}/runs")
    assert finished.status == 2
    sentence = "--scale=digits: --claim=precision is not tried there, wanted one of cifar10"
    assert finished.stderr.strip() == f"error: {sentence}"


def test_imagenet_is_not_run_from_here(tmp_path):
    at = reproduce.Places(str(tmp_path / "runs"), str(tmp_path / "results.jsonl"), None)
    claims, scale = LEDGER.chosen("table4_prior"), LEDGER.scales["imagenet"]
    with pytest.raises(UserError, match="takes 64 workers and a cluster"):
        reproduce.reproduce(claims, scale, at)
    answer = reproduce.plan(claims, scale, at)
    epochs = 2 * (10 + 25 + 50 + 100 + 200 + 400)
    assert answer.result == {"runs": 12, "hours": pytest.approx(epochs * 302 / 3600)}
    assert answer.text.splitlines()[-1] == "12 runs to make: about 132 hours on 64 workers as the paper has them"
    assert not list(tmp_path.iterdir())


def test_hours_follow_from_the_runs_that_are_made(tmp_path):
    scale, claims = LEDGER.scales["digits"], LEDGER.chosen("table4_prior")
    first = runs_of(claims[0], scale)[0]
    results = tmp_path / "results.jsonl"
    at = reproduce.Places("runs", str(results), None)
    assert reproduce.plan(claims, scale, at).result == {"runs": 20, "hours": None}
    # A minute for 6 epochs, in which the prior took two passes: 3 seconds for each of 20 passes.
    line = {"key": first.key, "scale": "digits", "epochs": 6, "passes_per_image": 20 / 6, "cpu_seconds": 60.0, KNN: 0.5}
    results.write_text(json.dumps(line) + "\n")
    answer = reproduce.plan(claims, scale, at).result
    assert answer["runs"] == 19
    # Two views forward and backward; five of these runs of each length begin with the prior's two passes.
    passes = 6 * (9 * 6 + 10 * 25) + 2 * (4 + 5)
    assert answer["hours"] == pytest.approx(passes * 3 / 3600 / reproduce.allowed())


def test_runs_with_more_views_take_more_hours():
    scale = LEDGER.scales["digits"]
    two, eight = (Run("digits", {**scale.flags, "views": views}, 10, 0) for views in (2, 8))
    assert hours_of(two, scale, 3.0) == pytest.approx(3 * (10 * 6 + 2) / 3600)
    assert hours_of(eight, scale, 3.0) == pytest.approx(3 * (10 * 24 + 2) / 3600)


def test_figures_stand_beside_the_page(tmp_path):
    import yaml

    content = yaml.safe_load(Path(CLAIMS).read_text())
    content["claims"] = [claim for claim in content["claims"] if claim["id"] == "table4_prior"]  # others share its runs
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content))
    ledger = read_ledger(str(tmp_path / "claims.yaml"))
    scale, lines = ledger.scales["digits"], []
    for run in runs_of(ledger.claims["table4_prior"].tried("digits", 2, 6), scale):
        value = 0.5 + 0.1 * ("classifier_init" not in run.flags) + 0.01 * run.seed
        facts = {"cpu_seconds": 1.0, "instances": 1437, "passes_per_image": 6.0, "epochs": run.epochs, "seed": run.seed}
        facts.update(MADE)
        lines.append(json.dumps({"key": run.key, "scale": "digits", KNN: value, LINEAR: value, **facts}))
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    answer = reproduce.ledger_page(ledger, str(tmp_path / "results.jsonl"), str(tmp_path / "results.md"))
    assert answer.result["runs"] == 4
    text = (tmp_path / "results.md").read_text()
    assert "(claims/table4_prior_digits.png)" in text and text.count(".png") == 1
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["table4_prior_digits.png"]
