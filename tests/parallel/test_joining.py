"""A script of one's own under a launcher: refused until it has joined the other workers, then it shares the classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import instcls_tf
from tests.commands import run_command, under_launcher
from tests.parallel.joining import NUM_INSTANCES, SIZE, K

WORKERS = 2


@pytest.fixture(scope="module")
def told(made_once) -> list[dict]:
    """What each of the workers has seen, in the order of ranks."""

    def make(folder: Path) -> Path:
        command = [sys.executable, "-m", "tests.parallel.joining", str(folder)]
        finished = run_command(under_launcher(WORKERS, command))
        assert finished.status == 0, finished.output[-8000:]
        return folder

    folder = made_once("joining", make)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORKERS)]


@pytest.mark.parametrize("when", ["before", "with_horovod_alone"])
def test_a_worker_that_has_not_joined_is_told_so(told, when):
    """Each would have had all classes, and would have trained them by itself."""
    sentence = "several workers were launched: call instcls_tf.init() first, which joins them"
    assert [worker[when] for worker in told] == [sentence] * WORKERS


def test_init_joins_where_horovod_was_initialised_before(told):
    assert [worker["layer"]["bounds"] for worker in told] == [[0, 51], [51, NUM_INSTANCES]]


def test_a_new_layer_is_the_same_on_any_number_of_workers(told):
    alone = instcls_tf.ShardedClassifier(NUM_INSTANCES, SIZE)
    rows = np.concatenate([worker["layer"]["rows"] for worker in told])
    np.testing.assert_array_equal(rows.astype(np.float32), alone.local_weights)
    lists = instcls_tf.hard_negatives(alone, K)
    expected = alone(tf.ones([NUM_INSTANCES, SIZE]), tf.range(NUM_INSTANCES), lists).loss
    np.testing.assert_allclose([worker["layer"]["loss"] for worker in told], expected, rtol=1e-5)


def test_the_documented_training_keeps_one_encoder(told):
    first, second = (worker["training"] for worker in told)
    np.testing.assert_allclose(first["encoder"], second["encoder"], rtol=1e-6, atol=1e-7)
    assert first["loss"] == pytest.approx(second["loss"])
    assert [first["bounds"], second["bounds"]] == [[0, 16], [16, 32]]
