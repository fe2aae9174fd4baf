"""The search for the largest N, and what one trial measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from instcls_tf.benchmark import memory
from instcls_tf.errors import UserError
from instcls_tf.plan import classifier_bytes
from tests.commands import ROOT, run_script


@pytest.mark.parametrize("truth", [3, 17, 1000, 123_456])
@pytest.mark.parametrize("first", [3, 900, 100_000])
def test_bisection_ends_within_five_percent_below_the_truth(truth, first):
    found = memory.largest_that_fits(lambda n: n <= truth, first, 3)
    assert found <= truth <= max(found, 1.05 * found)


def test_bisection_when_nothing_fits():
    assert memory.largest_that_fits(lambda n: False, 1000, 2) == 0


def test_a_good_first_guess_needs_few_trials():
    tried = []
    memory.largest_that_fits(lambda n: tried.append(n) or n <= 1000, 990, 1)
    assert len(tried) <= 3


def test_table():
    row = {"memory_limit_gb": 0.5, "sharded": 800, "data_parallel": 100, "ratio": 8.0}
    row.update(planned_sharded=810, planned_data_parallel=1200)
    result = {"workers": 2, "batch_rows": 64, "embedding_size": 16, "limits": [row]}
    result.update(weights_dtype="float32", momentum_dtype="bfloat16")
    assert memory.format_table(result).splitlines()[-1] == "| 0.5 | 100 (1,200) | 800 (810) | 8.0 |"
    for name in ("data_parallel", "planned_data_parallel", "ratio"):
        del row[name]
    assert memory.format_table(result).splitlines()[-3:] == [
        "| GB per worker | this design (planned) |",
        "|---|---|",
        "| 0.5 | 800 (810) |",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([0.0], 2, 64, 16), "--memory_limit=0: must be above 0, in GB"),
        (([1.0], 0, 64, 16), "--workers=0: must be at least 1"),
        (([1.0], 2, 64, 0), "--embedding_size=0: must be at least 1"),
        (([1.0], 2, 65, 16), "--batch_rows=65: must be a multiple of the 2 workers"),
        (([1.0], 2, 64, 16, "float16"), "--class_weights_dtype=float16: must be one of float32, bfloat16, int8"),
    ],
)
def test_mistakes(arguments, sentence):
    with pytest.raises(UserError) as refusal:
        limits, *sizes = arguments
        memory.measure_memory(limits, memory.Sizes(*sizes))
    assert str(refusal.value) == sentence


def test_limits_on_the_command_line():
    finished = run_script("benchmark", "memory", "--memory_limit=0.5,much")
    assert finished.status == 2
    assert finished.stderr == "error: --memory_limit=0.5,much: must be a number of GB, or several\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_trial_takes_the_planned_memory(dtype):
    """Within 10 %: class weights, momentum and workspace of one worker of one thread against the peak of a process."""
    sizes = (400_000, 1024, 128)
    trial = ["sharded", *map(str, sizes), dtype, dtype, "0"]
    command = [sys.executable, "-m", "instcls_tf.benchmark.memory_trial", *trial]
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1"}
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout)
    kept = {"weights_dtype": dtype, "momentum_dtype": dtype, "threads": 1}
    num_instances, batch_rows, size = sizes
    planned = classifier_bytes.peak_bytes(num_instances, 1, batch_rows, size, 0, **kept)
    assert answer["fits"]
    assert answer["peak_bytes"] == pytest.approx(planned, rel=0.1)


def test_a_trial_ends_at_its_limit():
    assert not memory._trial("data_parallel", 50_000, memory.Sizes(1, 256, 32), 20 * 10**6)
