"""What a run reports when, on a clock of its own."""

from __future__ import annotations

import json
import time

import pytest
import tensorflow as tf

from instcls_tf.classifier.hard_negatives import Refresh
from instcls_tf.classifier.output import LossOutput
from instcls_tf.config import PretrainConfig
from instcls_tf.pretraining import reporter
from instcls_tf.pretraining.reporter import EpochReporter
from instcls_tf.pretraining.steps import Steps
from instcls_tf.progress import Progress
from instcls_tf.run.log import RunClock


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Knn:
    """Takes three seconds, after every second epoch."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def is_due(self, epoch: int) -> bool:
        return epoch % 2 == 1

    def measure(self, progress) -> dict[str, float]:
        for batch in range(3):
            self.clock.now += 1
            progress("features", batch + 1, 3)
        return {"knn_top1": 0.5}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def steps_of(workdir, **changes) -> Steps:
    """Epochs of three steps, of 4, 4 and 2 instances."""
    settings = {"workdir": str(workdir), "batch_size": 4, "epochs": 4, "log_every": 2, **changes}
    return Steps(PretrainConfig(**settings), num_instances=10)


def test_steps_of_epochs(tmp_path):
    steps = steps_of(tmp_path, warmup_epochs=10, max_steps=7, checkpoint_every=2)
    assert (steps.per_epoch, steps.total, steps.warmup, steps.end) == (3, 12, 1, 7)
    assert [steps.instances(step) for step in range(4)] == [4, 4, 2, 4]
    assert [steps.epoch(step) for step in range(4)] == [0, 0, 0, 1]
    assert [step for step in range(7) if steps.begins_epoch(step)] == [0, 3, 6]
    assert [step for step in range(7) if steps.ends_epoch(step)] == [2, 5]
    assert [step for step in range(7) if steps.saves(step)] == [5, 6]
    assert [step for step in range(12) if steps_of(tmp_path, checkpoint_every=0).saves(step)] == [11]


def test_steps_of_a_window(tmp_path):
    """Windows of 8 of 20 images: two passes of steps of 4 and 4 make an epoch; the window takes 5 passes around."""
    config = PretrainConfig(workdir=str(tmp_path), method="pic", batch_size=5, epochs=3, pic_window=8, pic_stride=4)
    steps = Steps(config, num_instances=20)
    assert (steps.per_epoch, steps.total, steps.longest_absence) == (4, 12, 12)
    assert [steps.instances(step) for step in range(5)] == [5, 3, 5, 3, 5]
    assert [step for step in range(12) if steps.ends_epoch(step)] == [3, 7, 11]


def test_steps_of_contrast_and_of_priors(tmp_path):
    steps = steps_of(tmp_path)
    assert not any(steps.contrasts(step) or steps.takes_prior_again(step) for step in range(12))
    steps = steps_of(tmp_path, contrast_epochs=1)
    assert [step for step in range(12) if steps.contrasts(step)] == [0, 1, 2]
    assert [step for step in range(12) if steps.ends_contrast(step)] == [2]
    assert [step for step in range(12) if steps.takes_prior_again(step)] == [3]
    steps = steps_of(tmp_path, prior_every=2, epochs=6)
    assert [step for step in range(18) if steps.takes_prior_again(step)] == [6, 12]
    steps = steps_of(tmp_path, prior_every=2, contrast_epochs=1, epochs=6)
    assert [step for step in range(18) if steps.takes_prior_again(step)] == [3, 9, 15]


def test_marks_of_eq_1_are_for_eq_1(tmp_path, clock):
    for changes, marked in (
        ({}, [True, True]),
        ({"method": "simclr"}, [False, False]),
        ({"batch_contrast": 1.0}, [False, False]),
        ({"contrast_epochs": 1}, [False, True]),
    ):
        workdir = tmp_path / "_".join(changes)
        workdir.mkdir(exist_ok=True)
        steps = steps_of(workdir, log_every=100, max_steps=6, **changes)
        reporter = EpochReporter(steps, 0, Progress(visible=False), None)
        run(reporter, clock, range(6), {3: Refresh(2.0, None)})
        # Only the end of the first epoch, if contrast ends there, and the last step are due.
        lines = lines_of(workdir)
        assert [line["step"] for line in lines] == ([3, 6] if "contrast_epochs" in changes else [6])
        assert ["loss_floor" in line for line in lines] == marked[-len(lines) :]


@pytest.mark.parametrize("first_step", [0, 4, 6])
def test_the_loss_is_judged_after_the_first_epoch_of_the_classification(tmp_path, clock, monkeypatch, first_step):
    """Once, when that epoch is whole: not at its first line, and also where the run goes on before its end."""
    judged = []
    monkeypatch.setattr(reporter, "unexpected", lambda loss, *_: judged.append(loss) or "")
    steps = steps_of(tmp_path, log_every=1, contrast_epochs=1)
    run(EpochReporter(steps, first_step, Progress(visible=False), None), clock, range(first_step, 8), {})
    assert judged == ([5.0] if first_step < 6 else [])


def run(reporter: EpochReporter, clock: Clock, steps: range, refreshes: dict[int, Refresh]) -> None:
    """A loop whose steps take a second and whose losses are their numbers; a refresh takes two."""
    batches = iter(range(100))
    for step in steps:
        if step in refreshes:
            clock.now += refreshes[step].seconds
            reporter.refreshed(step, refreshes[step])
        reporter.next(batches)
        clock.now += 1
        reporter.add(step, LossOutput(tf.constant(float(step)), tf.constant(0.25)))
        if reporter.is_due(step):
            assert not reporter.write(step, learning_rate=0.125)
        reporter.show(step)
    reporter.close()


def lines_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_means_speed_search_and_knn_of_the_steps_since_the_last_line(tmp_path, clock):
    reporter = EpochReporter(steps_of(tmp_path, max_steps=7), 0, Progress(visible=False), Knn(clock))
    run(reporter, clock, range(7), {0: Refresh(2.0, None), 3: Refresh(2.0, 0.25), 6: Refresh(2.0, 0.5)})
    lines = lines_of(tmp_path)
    # Every second step, the end of an epoch with a search or k-NN, and the last step.
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 7]
    assert [line["epoch"] for line in lines] == [step / 3 for step in (2, 3, 4, 6, 7)]
    assert [line["loss"] for line in lines] == [0.5, 2, 3, 4.5, 6]
    assert {line["instance_top1"] for line in lines} == {0.25}
    assert {line["learning_rate"] for line in lines} == {0.125}
    # The search counts, the measurement does not.
    assert [line["images_per_second"] for line in lines] == [8 / 4, 2 / 1, 4 / 3, 6 / 2, 4 / 3]
    assert [line["seconds"] for line in lines] == [4, 5, 8, 10, 16 - 3]
    searches = [{name: line[name] for name in line if name.startswith("hard_negative_")} for line in lines]
    first = {"hard_negative_seconds": 2.0, "hard_negative_share": 2 / 5}
    assert searches == [{}, first, {}, {**first, "hard_negative_churn": 0.25}, {}]
    assert [line.get("knn_top1") for line in lines] == [None, None, None, 0.5, None]
    assert reporter.metrics == lines[-1]


def test_the_clock_goes_on_in_a_continued_run(tmp_path, clock):
    """Ten seconds before the first step of each part; what came after the checkpoint is made anew."""
    steps = steps_of(tmp_path, max_steps=6, log_every=1)
    for first in (0, 4):
        started = clock.now
        clock.now += 10
        reporter = EpochReporter(steps, first, Progress(visible=False), None, RunClock(started))
        run(reporter, clock, range(first, 6), {})
        clock.now += 100
    assert [line["seconds"] for line in lines_of(tmp_path)] == [11, 12, 13, 14, 14 + 11, 14 + 12]


@pytest.mark.parametrize(("kept", "seconds"), [(30.0, 30 + 12), (14.0, 14 + 12), (3.0, 14 + 12)])
def test_the_clock_goes_on_from_what_a_checkpoint_has_kept(tmp_path, clock, kept, seconds):
    """The line of its step is later if there is one, earlier if the run was ended between two lines."""
    steps = steps_of(tmp_path, max_steps=6, log_every=2)
    for first, before in ((0, 0.0), (4, kept)):
        started = clock.now
        clock.now += 10
        reporter = EpochReporter(steps, first, Progress(visible=False), None, RunClock(started, before))
        run(reporter, clock, range(first, 6), {})
        clock.now += 100
    assert [line["seconds"] for line in lines_of(tmp_path)] == [12, 14, seconds]


def test_the_search_of_an_epoch_that_was_cut_in_two_is_not_reported(tmp_path, clock):
    reporter = EpochReporter(steps_of(tmp_path, log_every=100), 1, Progress(visible=False), None)
    run(reporter, clock, range(1, 6), {1: Refresh(2.0, 0.25), 3: Refresh(2.0, 0.5)})
    assert [line["step"] for line in lines_of(tmp_path)] == [6]
    assert lines_of(tmp_path)[0]["hard_negative_churn"] == 0.5


def test_nothing_is_shown_before_there_is_a_line(tmp_path, clock, capsys):
    reporter = EpochReporter(steps_of(tmp_path, max_steps=4), 0, Progress(visible=True), None)
    run(reporter, clock, range(4), {})
    assert capsys.readouterr().err == (
        "pretraining: step 4/4, epoch 2/4, loss 2.500, instance top-1 25.0%, 3 images/s, data wait 0%, took 0:02\n"
    )


@pytest.mark.parametrize(("answers", "seconds"), [([True], 0), ([False, False, True], 2)], ids=["before", "within"])
def test_a_run_that_is_asked_to_stop_is_not_judged(tmp_path, clock, capsys, answers, seconds):
    """Its line is written all the same, and what it has waited for is no time of the run."""
    reporter = EpochReporter(steps_of(tmp_path, max_steps=7), 0, Progress(visible=True), Knn(clock))
    started, left = clock.now, iter(answers)
    reporter.add(5, LossOutput(tf.constant(2.0), tf.constant(0.25)))
    assert reporter.write(5, 0.125, lambda: next(left))
    assert clock.now == started + seconds and next(left, None) is None
    (line,) = lines_of(tmp_path)
    assert line["step"] == 6 and "knn_top1" not in line
    assert "asked to stop: the evaluation after step 6 is left out" in capsys.readouterr().err
    reporter.add(5, LossOutput(tf.constant(2.0), tf.constant(0.25)))
    clock.now += 1
    assert not reporter.write(5, 0.125, lambda: False) and lines_of(tmp_path)[-1]["knn_top1"] == 0.5
    assert [line["seconds"] for line in lines_of(tmp_path)] == [0, 1]
