"""A whole sweep of two arms, one trial each: measured, interrupted in the second, continued, compared, pictured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from instcls_tf.distributed.job import STOPPED_STATUS
from instcls_tf.run.workdir import load_run
from tests.commands import ROOT, TIMEOUT, Finished, run_command, script, user_environment
from tests.end_to_end.runs import TINY

EPOCHS = 4
TRAINED_ON, JUDGED_BY = 1295, 142  # of the 1,437 digits, a tenth of each class judges


class Sweep(NamedTuple):
    """The folder of the sweep, and what its commands said."""

    folder: Path
    spec: Path
    too_short: Finished
    interrupted: Finished
    finished: Finished


def write_spec(path: Path, minutes: float) -> None:
    """Arms whose settings take the same time, so that one calibration is enough."""
    base = {name: value for name, value in TINY.items() if name not in ("epochs", "learning_rate")}
    arms = {"slow": {"flags": {"learning_rate": 0.001}}, "fast": {"flags": {"learning_rate": 0.2}}}
    values = {"workdir": str(path.parent / "sweep"), "minutes": minutes, "cores": 1, "side_by_side": 1}
    values |= {"measurements": 2, "base": {**base, "method": "simclr"}, "arms": arms}
    path.write_text(json.dumps(values))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interrupt_in_second_trial(spec: Path, folder: Path) -> Finished:
    """SIGTERM to the sweep alone, after a checkpoint of its second trial."""
    process = subprocess.Popen(
        script("sweep", f"--spec={spec}"), cwd=ROOT, env=user_environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    give_up = time.monotonic() + TIMEOUT
    while not list(folder.glob("search/fast-*/checkpoints/checkpoint")):
        assert process.poll() is None and time.monotonic() < give_up, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    return Finished(process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    home = tmp_path_factory.mktemp("sweep")
    spec, folder = home / "spec.json", home / "sweep"
    write_spec(spec, minutes=1e-4)
    too_short = run_command(script("sweep", f"--spec={spec}"))
    (pace,) = lines_of(folder / "calibrations.jsonl")
    write_spec(spec, minutes=(pace["seconds_before"] + EPOCHS * pace["seconds_per_epoch"]) / 60)
    interrupted = interrupt_in_second_trial(spec, folder)
    assert len(lines_of(folder / "results.jsonl")) == 1
    return Sweep(folder, spec, too_short, interrupted, run_command(script("sweep", f"--spec={spec}")))


def test_minutes_that_hold_no_epoch_are_refused_once_they_are_measured(sweep):
    assert sweep.too_short.status == 2
    last = sweep.too_short.stderr.splitlines()[-1]
    assert last.startswith(f"error: --spec={sweep.spec}: minutes: 0.0001 are too few for arms.slow, which takes ")
    (pace,) = lines_of(sweep.folder / "calibrations.jsonl")
    assert pace["seconds_per_epoch"] > 0 and pace["images_per_second"] > 0


def test_an_interrupted_sweep_ends_its_trials(sweep):
    assert sweep.interrupted.status == 128 + signal.SIGTERM
    assert sweep.interrupted.stderr.endswith("SIGTERM: interrupted: the same command goes on where it ended\n")
    (folder,) = sweep.folder.glob("search/fast-*")
    assert lines_of(folder / "attempts.jsonl")[0]["status"] == STOPPED_STATUS  # it has saved


def test_it_goes_on_where_it_ended(sweep):
    assert sweep.finished.status == 0, sweep.finished.output
    assert "1 of 2 trials are finished already" in sweep.finished.stderr
    slow, fast = (next(sweep.folder.glob(f"search/{name}-*")) for name in ("slow", "fast"))
    commands = [(line["command"], line["status"]) for line in lines_of(slow / "attempts.jsonl")]
    assert commands == [("-m scripts.pretrain", 0), ("-m scripts.knn_eval", 0)]
    commands = [(line["command"], line["status"]) for line in lines_of(fast / "attempts.jsonl")]
    assert commands == [("-m scripts.pretrain", STOPPED_STATUS), ("-m scripts.pretrain", 0), ("-m scripts.knn_eval", 0)]
    assert f"continuing {fast} from step" in (fast / "log.txt").read_text()


def test_results_say_what_was_run_and_what_it_took(sweep):
    slow, fast = lines_of(sweep.folder / "results.jsonl")
    assert [(line["arm"], line["flags"]) for line in (slow, fast)] == [
        ("slow", {"learning_rate": 0.001}), ("fast", {"learning_rate": 0.2}),
    ]  # fmt: skip
    for line in (slow, fast):
        assert (line["epochs"], line["seed"], line["split"], line["stage"]) == (EPOCHS, 0, "validation", "search")
        assert line["examples"] == JUDGED_BY
        assert 0.1 < line["accuracy"] <= 1  # chance is 0.1
        assert line["minutes"] > 0 and line["images_per_second"] > 0
        assert line["minutes_planned"] == json.loads(sweep.spec.read_text())["minutes"]
        assert line["processor"] and line["date"]
        config = load_run(line["folder"])
        assert (config.epochs, config.learning_rate) == (EPOCHS, line["flags"]["learning_rate"])
        metrics = lines_of(Path(line["folder"]) / "metrics.jsonl")
        assert len(metrics) == EPOCHS * -(-TRAINED_ON // TINY["batch_size"])
        seconds = [step["seconds"] for step in metrics]
        assert seconds == sorted(seconds) and line["minutes"] == seconds[-1] / 60
        assert sum("knn_top1" in step for step in metrics) == 2
        assert metrics[-1]["knn_top1"] == pytest.approx(line["accuracy"])
        assert not os.path.exists(Path(line["folder"]) / "features")


def test_the_answer_compares_the_arms(sweep):
    answer = json.loads(sweep.finished.stdout.splitlines()[-1])
    assert answer == json.loads((sweep.folder / "sweep.json").read_text())
    slow, fast = lines_of(sweep.folder / "results.jsonl")
    assert answer["arms"]["slow"]["accuracy"] == slow["accuracy"]
    assert answer["arms"]["fast"]["difference"] == pytest.approx(fast["accuracy"] - slow["accuracy"])
    assert "| fast | 1 of 1 | --learning_rate=0.2 | 4 |" in (sweep.folder / "summary.md").read_text()


def test_a_finished_sweep_starts_nothing_and_can_be_pictured(sweep, tmp_path):
    before = (sweep.folder / "results.jsonl").read_bytes()
    again = run_command(script("sweep", f"--spec={sweep.spec}"))
    assert again.status == 0 and again.stdout == sweep.finished.stdout
    drawn = run_command(script("sweep", f"--spec={sweep.spec}", f"--picture={tmp_path / 'accuracy.png'}"))
    assert drawn.status == 0, drawn.output
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (sweep.folder / "results.jsonl").read_bytes() == before


def test_mistakes_are_answered_before_anything_is_written(tmp_path):
    write_spec(tmp_path / "spec.json", minutes=-1)
    finished = run_command(script("sweep", f"--spec={tmp_path / 'spec.json'}"))
    assert (finished.status, finished.stdout) == (2, "")
    assert finished.stderr == f"error: --spec={tmp_path}/spec.json: minutes: -1 must be a number of minutes above 0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]
