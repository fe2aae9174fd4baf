"""The soak, `python -m tests.faults.soak`: what it does when, and that it would see a difference."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest

from tests.commands import start_fork
from tests.faults.preloaded.server import Server
from tests.faults.soak import Soak, compare, report
from tests.faults.soak_plan import PHASES, SIGNALS, VICTIMS, Hurt, hurt_of, phase_of

EVERYTHING = set(itertools.product(SIGNALS, VICTIMS, PHASES))


def test_every_signal_to_every_process_in_every_phase():
    hurts = [hurt_of(0, cycle) for cycle in range(2 * len(EVERYTHING))]
    for turn in (hurts[: len(EVERYTHING)], hurts[len(EVERYTHING) :]):
        assert {hurt[:3] for hurt in turn} == EVERYTHING
    assert hurts == [hurt_of(0, cycle) for cycle in range(len(hurts))]
    assert hurts != [hurt_of(1, cycle) for cycle in range(len(hurts))]
    assert len({hurt.place for hurt in hurts}) > len(EVERYTHING)


def test_phases_by_what_the_work_says():
    said = ["starting", "restoring", "contrastive prior", "hard negatives", "training", "saving step 3"]
    found = [phase_of(stamp) for stamp in (*said, "features of digits", "pretraining")]
    assert found == ["start-up", "start-up", "prior", "search", "step", "save", "evaluation", "step"]
    assert Hurt("SIGINT", "worker 1", "save", "saving step:#1:0.2").variable == "SIGINT@1:saving step:#1:0.2"


def test_a_soak_goes_on_where_it_was(tmp_path):
    server = Server(tmp_path / "server")
    done = [{**Hurt("SIGKILL", "launcher", "save", "x")._asdict(), "status": -9, "seconds": 36.0}] * 2
    soak = Soak(tmp_path / "soak", 0, server)
    soak.done, soak.compared = done, 1
    soak._keep()
    again = Soak(tmp_path / "soak", 0, server)
    assert (again.done, again.compared) == (done, 1)
    text = report(again.done, again.compared)
    assert "| SIGKILL launcher | 0 | 0 | 0 | 0 | 2 | 0 | 2 |" in text
    assert "2 cycles in 0.0 hours, exit statuses: 2 x -9; 1 run(s) came to their end" in text
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError):
        Soak(tmp_path / "mine", 0, server)


def _log_knn(run: Path, *steps: int) -> None:
    """Has a run's log say that it was judged after some steps."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{**line, "knn_top1": 0.5} if line["step"] in steps else line for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("change", ["", "lost", "loss", "earlier", "unjudged"])
def test_it_sees_a_difference(past, tmp_path, change):
    """Runs are equal if a kill took the log's line of a checkpoint, or a signal an evaluation before the last; another
    loss, line or checkpoint is told.
    """
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(past.stopped if change == "earlier" else past.whole, run)
    shutil.copytree(past.whole, whole)
    _log_knn(whole, 3, 6, 9)
    _log_knn(run, *(() if change == "unjudged" else (9,)))
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[2:3]  # step 3, of which there was a checkpoint
    if change == "lost":
        del lines[3]  # step 5
    if change == "loss":
        lines[4]["loss"] += 1e-7
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = start_fork(compare, run, whole)
    comparison.join()
    assert (comparison.exitcode == 0) == (not change)
