"""The encoder's gradients travel while the backward pass goes on, as Horovod's own timeline of two workers shows."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

from tests.parallel.tasks import OVERLAP_STEPS

NUM_VARIABLES = 10


@pytest.fixture(scope="module")
def timeline(job) -> Path:
    return job(2) / "overlap" / "timeline.json"


def steps_of(timeline: Path, prefix: str) -> list[list[tuple[int, int]]]:
    """For each step, when each tensor's reduction was asked for and when it had ended, in microseconds."""
    text = timeline.read_text()
    names = dict(re.findall(r'"process_name", "ph": "M", "pid": (\d+), "args": {"name": "(\w+)"}', text))
    times = collections.defaultdict(list)
    for begin, time, tensor in re.findall(r'{"ph": "([BE])"[^}]*?"ts": (\d+), "pid": (\d+)', text):
        if re.fullmatch(rf"{prefix}_\d+(of\d+)?", names[tensor]):
            times[tensor].append((begin, int(time)))
    steps = [[] for _ in range(OVERLAP_STEPS)]
    for events in times.values():
        depth, phases = 0, []
        for begin, time in events:  # phases on the outermost level: negotiation, reduction
            if depth == 0:
                phases.append([time])
            depth += 1 if begin == "B" else -1
            if depth == 0:
                phases[-1].append(time)
        for step, (negotiation, reduction) in zip(steps, zip(phases[::2], phases[1::2])):
            step.append((negotiation[0], reduction[1]))
    return steps


def overlapping(steps: list[list[tuple[int, int]]]) -> int:
    """In how many steps a first reduction had ended before the last one was asked for."""
    return sum(min(end for _, end in step) < max(begin for begin, _ in step) for step in steps)


def test_reductions_end_before_the_backward_pass_does(timeline):
    steps = steps_of(timeline, "encoder_gradient")
    assert [len(step) for step in steps] == [NUM_VARIABLES] * OVERLAP_STEPS
    # One step shows it. A worker that is held up for longer than a backward pass takes hides it in a step, on a busy
    # machine in many; without overlap there is none.
    assert overlapping(steps) > 0


def test_one_reduction_after_it_would_not(timeline):
    steps = steps_of(timeline, "together")
    assert [len(step) for step in steps] == [NUM_VARIABLES] * OVERLAP_STEPS
    assert overlapping(steps) == 0
