"""Three runs of the ledger at a tiny size, really made: lines of results, and not made once more."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.commands import ROOT, run_script

TINY = {
    "dataset": "digits", "augmentation": "digits", "image_size": 8, "encoder": "resnet10", "stem": "small",
    "width_multiplier": 0.125, "batch_size": 480, "hard_negatives": 5,
}  # fmt: skip
ARMS = {"table4_prior": ("prior", "random"), "table6_rivals": ("SimCLR",)}


@pytest.fixture(scope="module")
def made(made_once):
    def make(folder):
        content = yaml.safe_load((ROOT / "docs" / "claims.yaml").read_text())
        content["scales"]["digits"]["flags"] = TINY
        content["claims"] = [claim for claim in content["claims"] if claim["id"] in ARMS]
        for claim in content["claims"]:
            claim["arms"] = {name: claim["arms"][name] for name in ARMS[claim["id"]]}
            claim["orderings"] = [pair for pair in claim["orderings"] if set(pair) <= set(claim["arms"])]
        (folder / "claims.yaml").write_text(yaml.safe_dump(content))
        return folder, run(folder)

    return made_once("reproduce", make)


def run(folder, *words):
    settings = {"claims": folder / "claims.yaml", "results": folder / "results.jsonl", "workdir": folder / "runs"}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return run_script("reproduce", "--claim=all", "--scale=digits", "--seeds=1", "--epochs=1", *flags, *words)


def test_three_runs_of_the_ledger(made):
    folder, finished = made
    assert finished.status == 0, finished.output
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 3
    assert {line["flags"].get("method", "instance") for line in lines} == {"instance", "simclr"}
    for line in lines:
        assert 0.1 < line["knn"] <= 1 and 0.1 < line["linear"] <= 1
        assert (line["instances"], line["test_images"], line["epochs"], line["seed"]) == (1437, 360, 1, 0)
        assert line["cpu_seconds"] > 1 and line["seconds"] > 0 and line["images_per_second"] > 0 and line["processor"]
        passes = {"random": 6, None: 6 + 2, "simclr": 6}
        assert line["passes_per_image"] == passes[line["flags"].get("classifier_init", line["flags"].get("method"))]


def test_nothing_is_made_twice(made):
    folder, _ = made
    before = (folder / "results.jsonl").read_bytes()
    again = run(folder)
    assert again.status == 0, again.output
    assert (folder / "results.jsonl").read_bytes() == before
    assert json.loads(run(folder, "--dry_run").stdout.splitlines()[-1])["runs"] == 0


@pytest.mark.parametrize("scale", ["cifar10", "fashion"])
def test_a_scale_needs_its_images(scale, tmp_path):
    finished = run_script("reproduce", "--claim=all", f"--scale={scale}", f"--workdir={tmp_path / 'runs'}")
    assert finished.status == 2
    assert f"--dataset is missing: wanted folder:PATH, the images of --scale={scale}" in finished.stderr
    assert not any(tmp_path.iterdir())
