"""`plan` from the command line: without TensorFlow, and strict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, TIMEOUT, run_script
from tests.end_to_end.runs import flags_of
from tests.images import write_images

IMAGENET = ("--flagfile=flags/presets/imagenet.flags", "--num_instances=1281167", "--workers=64")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Runs the command in an environment where importing TensorFlow, or what else takes its time, ends it."""

    def forbid(*modules: str) -> Path:
        folder = tmp_path_factory.mktemp("path")
        for module in modules:
            (folder / f"{module}.py").write_text(f"raise SystemExit('{module} was imported')\n")
        return folder

    folders = {False: forbid("tensorflow", "keras", "sklearn", "matplotlib"), True: forbid("tensorflow")}

    def run(*arguments: str, draws: bool = False) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "scripts.plan", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(folders[draws])},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    return run


def test_answer_of_the_paper_s_run(plan):
    finished = plan(*IMAGENET)
    assert finished.returncode == 0, finished.stderr
    *text, last = finished.stdout.splitlines()
    answer = json.loads(last)
    assert answer["memory"]["class weights"] == 20019 * 128 * 4
    assert answer["fits"] and answer["peak_bytes"] == sum(answer["memory"].values())
    assert answer["largest_num_instances"] > answer["data_parallel_largest_num_instances"] > 1281167
    for words in ("class weights", "encoder gradients", "per epoch of 313 steps", "Largest N in 32 GB per worker"):
        assert any(words in line for line in text), words


def test_a_run_that_does_not_fit(plan):
    finished = plan(*IMAGENET, "--memory_limit=4")
    answer = json.loads(finished.stdout.splitlines()[-1])
    assert not answer["fits"] and answer["largest_num_instances"] == 0 and answer["ratio"] is None
    assert "DOES NOT FIT" in finished.stdout


def test_picture(plan, tmp_path):
    path = tmp_path / "new" / "plan.png"
    assert plan(*IMAGENET, f"--output={path}", draws=True).returncode == 0
    assert path.read_bytes().startswith(b"\x89PNG")


RATES = ("images_per_second", "gigaflops", "latency_seconds", "bandwidth")


@pytest.mark.parametrize("cache", ["", "ram"])
def test_hours_measured_on_the_images(tmp_path, cache):
    write_images(tmp_path / "photos", [f"{index}.jpg" for index in range(12)])
    changes = {"augmentation": "simclr", "batch_size": 8, "micro_batch": 4, "width_multiplier": 0.5, "image_size": 24}
    flags = flags_of(tmp_path / "run", **changes, dataset=f"folder:{tmp_path / 'photos'}", cache=cache, epochs=50)
    finished = run_script("plan", *flags, "--measure_seconds=0.5", "--device=cpu")
    assert finished.status == 0, finished.output
    *text, last = finished.stdout.splitlines()
    answer = json.loads(last)
    assert answer["num_instances"] == 12
    own, narrower, smaller = answer["measured"]
    assert [own["change"], narrower["change"], smaller["change"]] == ["", "--width_multiplier=0.25", "--image_size=16"]
    for hours in answer["measured"]:
        assert hours["training_seconds"] == pytest.approx(50 * 12 / hours["images_per_second"])
        assert hours["prior_seconds"] > 0 and hours["search_seconds"] > 0
        assert (hours["cache_seconds"] > 0) == bool(cache)
        parts = ("cache_seconds", "prior_seconds", "training_seconds", "search_seconds")
        assert hours["seconds"] == pytest.approx(sum(hours[part] for part in parts))
    assert any(line.startswith("  these flags") for line in text)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--num_instances is missing: how many images, each a class, the run is to have"),
        (("--num_instances=100", "--workers=64"), "--hard_negatives=100: must be below --num_instances=100\n"),
        (("--num_instances=many",), "--num_instances=many: must be a whole number"),
        (("--num_instances=1000", "--prior_every=10"), "--prior_every=10: must be 0, what this lever takes is not"),
        (("--num_instances=1000", "--contrast_epochs=1"), "--contrast_epochs=1: must be 0, what this lever takes"),
        (("--num_instances=1000", "--max_steps=9"), "--max_steps=9: must be left out: the whole run is planned"),
        (("--num_instances=1000", "--extend_from=runs/old"), "--extend_from=runs/old: must be left out, a run"),
        (("--measure_seconds=-1",), "--measure_seconds=-1.0: must be 0 or more"),
        (("--num_instances=1000", "--stem=big"), "--stem=big: must be one of imagenet, small"),
        (("--num_instances=1000", "--output=/proc/plan.png"), "--output=/proc/plan.png: cannot write this file"),
    ],
)
def test_mistakes(plan, arguments, sentence):
    finished = plan(*arguments)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {sentence}")
    assert len(finished.stderr.splitlines()) == 1 and not finished.stdout


@pytest.mark.parametrize(
    "flag",
    [
        "--scaling_instances=5,7",
        "--scaling_workers=2",
        "--doctor=doctor.json",
        *(f"--{rate}=1.0" for rate in RATES),
        "--one_machine=True",
        "--overlap=False",
    ],
)
def test_flags_of_scaling_without_it(plan, flag):
    finished = plan("--num_instances=1000", flag)
    assert finished.returncode == 2 and not finished.stdout
    assert finished.stderr == f"error: {flag}: must be left out without --scaling\n"


def test_scaling(plan):
    given = ("--images_per_second=66", "--gigaflops=12000", "--latency_seconds=1e-4", "--bandwidth=3")
    finished = plan("--flagfile=flags/presets/imagenet.flags", "--scaling", *given)
    assert finished.returncode == 0, finished.stderr
    *text, last = finished.stdout.splitlines()
    points = json.loads(last)["points"]
    assert len(points) == 27 and [point["workers"] for point in points[:9]] == [2**power for power in range(9)]
    assert [line.split(maxsplit=1)[0] for line in text if "N = " in line] == ["N"] * 3
    # More classes make the classifier the largest term; more workers of as many rows never make a step longer here.
    assert points[0]["largest_term"] == "encoder" and points[-1]["largest_term"] == "classifier"
    assert all(0 < point["efficiency"] <= 1 for point in points)


def test_the_object_alone(plan):
    finished = plan(*IMAGENET, "--json")
    assert len(finished.stdout.splitlines()) == 1 and json.loads(finished.stdout)["fits"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--images_per_second is missing: give it, or --doctor=FILE, which has measured it"),
        (("--scaling_workers=1,x",), "--scaling_workers=1,x: must be whole numbers"),
        (("--workers=8",), "--workers=8: must be left out with --scaling"),
        (
            ("--scaling_instances=100", *(f"--{rate}=1" for rate in RATES)),
            "--scaling_instances=100: must be at least the 256 workers of --scaling_workers",
        ),
        (
            ("--scaling_instances=2147483648", *(f"--{rate}=1" for rate in RATES)),
            "--scaling_instances=2147483648: must be at least the 256 workers of --scaling_workers, and at most",
        ),
        (
            ("--scaling_instances=100", "--scaling_workers=1", *(f"--{rate}=1" for rate in RATES)),
            "--hard_negatives=100: must be below --scaling_instances=100\n",
        ),
        (
            ("--images_per_second=1", "--gigaflops=1", "--scaling_workers=0"),
            "--scaling_workers=0: must be numbers",
        ),
        (("--doctor=no/such.json",), "--doctor=no/such.json: cannot be read (No such file or directory), wanted what"),
    ],
)
def test_mistakes_of_scaling(plan, arguments, sentence):
    finished = plan("--scaling", *arguments)
    assert finished.returncode == 2 and finished.stderr.startswith(f"error: {sentence}")
