"""The ledger of claims: what it says parses and can be planned, what was measured stands on the page as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flags.sweep import config_of
from instcls_tf.claims import minutes, page, reproduce
from instcls_tf.claims.ledger import KNN, LINEAR, Arm, Scale, read_ledger
from instcls_tf.claims.runs import Run, hours_of, passes_per_image, run_of, runs_of
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.plan import planner
from instcls_tf.run.workdir import begin_run
from instcls_tf.sweep.jobs import Ended, Job
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
    longer, scale = Arm("longer", {"small": {}}, {}, {"small": 1.5}), Scale("small", "few images", {})
    assert run_of(longer, scale, 25, 0).epochs == 38
    assert run_of(longer, scale, 25, 0).key == run_of(Arm("plain", {"small": {}}, {}), scale, 38, 0).key
    assert longer.epochs("another scale", 25) == 25


def test_passes_per_image():
    def passes(**changes) -> float:
        return passes_per_image(PretrainConfig(**changes))

    assert passes(classifier_init="random") == passes(method="simclr") == 2 * (1 + 2)
    assert passes(epochs=10) == 6 + 2 / 10  # BN burn-in and prior
    assert passes(epochs=10, classifier_init="raw_fixed_bn") == 6 + 1 / 10  # no burn-in
    assert passes(method="moco_v2") == 1 + 2 + 1
    assert passes(method="pic", views=1) == 3


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


def test_what_the_picture_of_minutes_shows_was_measured():
    shown, results = LEDGER.minutes, reproduce.read_results(RESULTS)
    for name, flags in shown.series.items():
        assert minutes.points_of(flags, LEDGER.scales[shown.scale], results), name


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
        (lambda content: content["minutes"].update(scale="cifar"), "minutes: 'cifar' is no scale"),
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
        facts.update(commit="abc", processor="a processor")
        lines.append(json.dumps({"key": run.key, "scale": "digits", KNN: value, LINEAR: value, **facts}))
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    answer = reproduce.ledger_page(ledger, str(tmp_path / "results.jsonl"), str(tmp_path / "results.md"))
    assert answer.result["runs"] == 4
    text = (tmp_path / "results.md").read_text()
    assert "(claims/table4_prior_digits.png)" in text and "(claims/minutes.png)" in text and text.count(".png") == 2
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "claims").iterdir()}
    assert sorted(pictures) == ["minutes.png", "table4_prior_digits.png"]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
