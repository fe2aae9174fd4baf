"""When a run will be done, on a clock of its own."""

from __future__ import annotations

import time

import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.pretraining.forecast import Forecast
from instcls_tf.pretraining.steps import Steps


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "localtime", time.gmtime)
    return now


def watched(clock: list[float], seconds_per_step: float, epochs: int = 50, searches: bool = False) -> list[str]:
    """What is said of a run of 20 steps an epoch, whose first step takes a minute and whose searches take 200 s."""
    steps = Steps(PretrainConfig(batch_size=5, epochs=epochs), num_instances=100)
    said: list[str] = []
    forecast = Forecast(steps, said.append)
    for step in range(steps.end):
        if searches and steps.begins_epoch(step):
            clock[0] += 200.0
            forecast.searched(200.0)
        clock[0] += 60.0 if step == 0 else seconds_per_step
        forecast.stepped(step)
    return said


def test_it_is_said_once_without_the_first_step(clock):
    assert watched(clock, 10.0) == ["at 10 s a step this run is done in about 2.7 hours, Thu 01 Jan 02:49"]


def test_searches_that_come_are_counted_once(clock):
    """49 of them, and 989 steps of 4 s: 13,756 s; one among the steps that are watched does not make them longer."""
    assert watched(clock, 4.0, searches=True) == ["at 4 s a step this run is done in about 3.8 hours, Thu 01 Jan 03:55"]
    (said,) = watched(clock, 1.4, searches=True)
    assert said.startswith("at 1.4 s a step this run is done in about 3.0 hours")


def test_a_short_run_is_not_told_of(clock):
    assert watched(clock, 5.0, epochs=1) == []
    assert watched(clock, 0.01) == []
