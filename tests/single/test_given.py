"""Flags that another one leaves without any effect are refused, each by its command."""

from __future__ import annotations

import pytest

from instcls_tf.claims import reproduce
from instcls_tf.claims.ledger import read_ledger
from instcls_tf.errors import UserError
from tests.commands import ROOT, run_calls

# Parses the words of a command and asks for what it makes of them.
_ASK = """
import sys
from absl import flags
from flags import benchmark, claims, command, doctor, evaluation, gallery, launch, recipes, search, sweep
from instcls_tf.errors import UserError
name, *words = sys.argv[1:]
asked = {
    "doctor": (doctor.define, doctor.asked),
    "step": (benchmark._define_step, benchmark._step),
    "input": (benchmark._define_input, benchmark._input),
    "launch": (launch.define, launch.options),
    "similarity": (evaluation.define_similarity, evaluation.checked_similarity),
    "sweep": (sweep.define, sweep.checked),
    "reproduce": (claims.define, claims.answer),
    "search": (search.define_search, search.search_settings),
    "duplicates": (search.define_duplicates, search.duplicates_settings),
    "gallery": (gallery.define, lambda: gallery.settings().validate()),
    "linear_eval": (evaluation.define_linear, recipes.linear),
    "finetune": (evaluation.define_finetune, recipes.finetune),
}
define, ask = asked[name]
define()
flags.FLAGS([name, *words])
try:
    ask()
except UserError as error:
    print(error, end="")
"""
_RENDER = "must be left out with --render"
_IMAGES = "must be left out with --dataset=folder:no/such, whose images are counted"
_VIEWS = "is of --augmentation=simclr, --augmentation=none has nothing of the kind: leave it out"
_QUICK = "must be left out with --quick, which looks at no run"
_CROP = "must be left out with --augmentation="
REFUSED = {
    "doctor --dataset=folder:no/such --num_instances=7": f"--num_instances=7: {_IMAGES}",
    "doctor --dataset=folder:no/such": "--dataset=folder:no/such: no such folder",
    "doctor --dataset=synthetic --num_instances=700": "",
    "doctor --quick --dataset=folder:no/such --image_size=-5": f"--dataset=folder:no/such: {_QUICK}",
    "doctor --quick --flagfile=flags/presets/digits.flags": f"--dataset=digits: {_QUICK}",
    "doctor --quick --nostep": f"--step=False: {_QUICK}",
    "doctor --quick --json": "",
    "doctor --augmentation=none --blur_probability=1": f"--blur_probability=1.0: {_VIEWS}",
    "doctor --flagfile=flags/presets/photos.flags --augmentation=none --dataset=synthetic": "",
    "step --dataset=folder:no/such --num_instances=50000": f"--num_instances=50000: {_IMAGES}",
    "step --dataset=folder:no/such": "",
    "step --num_instances=7": "",
    "input --flagfile=flags/presets/photos.flags --dataset=digits --image_size=0": "--image_size=0: must be at least 1",
    "input --flagfile=flags/presets/photos.flags --dataset=digits": "",
    "launch -np 2 --min_workers=1": "--min_workers=1: must be left out without --max_restarts",
    "launch -np 2 --wait_for_hosts=600": "--wait_for_hosts=600.0: must be left out without --max_restarts",
    "launch -np 2 --wait_for_hosts=60 --min_workers=1 --max_restarts=1": "",
    "similarity --threshold=0.9": "--threshold=0.9: must be left out without --index",
    "similarity --listed=20": "--listed=20: must be left out without --index",
    "similarity --index --instances=5": "--instances=5: must be left out with --index, which looks at all",
    "similarity --index --threshold=0.9 --listed=5": "",
    "similarity --instances=5": "",
    "linear_eval --augmentation=digits --crop_min_area=0.5": f"--crop_min_area=0.5: {_CROP}digits, which cuts nothing",
    "finetune --augmentation=none --crop_min_area=0.5": f"--crop_min_area=0.5: {_CROP}none, which cuts nothing",
    "finetune --crop_min_area=0.5": "",
    # Neighbours have a name that all commands share.
    "search --num_neighbors=7": "",
    "duplicates --num_neighbors=0": "--neighbors=0: must be at least 1",
    "gallery --num_neighbors=0": "--neighbors=0: must be 1 to 100",
    "sweep --dry_run --picture=a.png": "--picture=a.png: must be left out with --dry_run, which draws none",
    "sweep --final --picture=a.png": "--final=True: must be left out with --picture, which starts no trial",
    "sweep --final --dry_run": "",
    "reproduce --render --results=no/such.jsonl --claim=all": f"--claim=all: {_RENDER}",
    "reproduce --render --results=no/such.jsonl --scale=digits": f"--scale=digits: {_RENDER}",
    "reproduce --render --results=no/such.jsonl --dataset=digits": f"--dataset=digits: {_RENDER}",
    "reproduce --render --results=no/such.jsonl --workdir=a": f"--workdir=a: {_RENDER}",
    "reproduce --render --results=no/such.jsonl --seeds=2": f"--seeds=2: {_RENDER}",
    "reproduce --render --results=no/such.jsonl --epochs=2": f"--epochs=2: {_RENDER}",
    "reproduce --render --results=no/such.jsonl --dry_run": f"--dry_run=True: {_RENDER}",
    "reproduce --claim=all --dry_run --page=a.md": "--page=a.md: must be left out without --render",
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What each command line is answered with."""
    calls = [line.split() for line in REFUSED]
    done = run_calls(_ASK, calls, ["flags.command", "flags.evaluation"])
    assert all(answer.stderr == "" for answer in done), [answer.stderr for answer in done]
    return {line: answer.stdout for line, answer in zip(REFUSED, done)}


@pytest.mark.parametrize("line", REFUSED)
def test_a_flag_without_any_effect(answers, line):
    assert answers[line] == REFUSED[line]


def test_no_page_is_rendered_of_results_that_are_not_there(tmp_path):
    page, results = tmp_path / "results.md", tmp_path / "no.jsonl"
    page.write_text("as it was")
    with pytest.raises(UserError) as refusal:
        reproduce.ledger_page(read_ledger(str(ROOT / "docs" / "claims.yaml")), str(results), str(page))
    assert str(refusal.value) == f"--results={results}: is not there, wanted the file with the runs of --page={page}"
    assert page.read_text() == "as it was"
