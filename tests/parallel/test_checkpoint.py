"""A checkpoint written by two workers is one tensor, and any number of workers can go on from it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.run import checkpoint
from tests import reference
from tests.parallel import cases


def test_slices_read_as_one_tensor(job):
    reader = tf.train.load_checkpoint(checkpoint.latest(str(job(2) / "save")))
    np.testing.assert_array_equal(reader.get_tensor("classifier/rows"), cases.weights())
    np.testing.assert_array_equal(reader.get_tensor("classifier/momentum"), -cases.weights())
    expected = reference.hard_negatives(cases.weights(), cases.NUM_HARD_NEGATIVES)
    np.testing.assert_array_equal(reader.get_tensor("classifier/hard_negatives"), expected)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_restores_on_another_number_of_workers(job, num_workers):
    restored = np.load(job(num_workers) / "restore" / "restored.npz")
    np.testing.assert_array_equal(restored["rows"], cases.weights())
    np.testing.assert_array_equal(restored["momentum"], -cases.weights())
    np.testing.assert_array_equal(
        restored["lists"], reference.hard_negatives(cases.weights(), cases.NUM_HARD_NEGATIVES)
    )
    assert np.abs(restored["kernel"]).max() > 0


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_first_step_on_another_number_of_workers(job, num_workers):
    restored = np.load(job(num_workers) / "restore" / "restored.npz")
    case = cases.CASES["marginal"]
    dense = reference.DenseClassifier(
        cases.weights(), temperature=case.temperature, smoothing=case.smoothing, smoothing_loss=case.smoothing_loss
    )
    dense.buffer = -dense.weights.copy()
    embeddings, ids = cases.batch(0)
    loss, _, _ = dense.step(embeddings, ids, restored["lists"][ids], cases.LEARNING_RATE)
    np.testing.assert_allclose(restored["loss"], loss, rtol=1e-5)
    assert reference.relative_error(restored["rows_after"], dense.weights) < 1e-5
    assert reference.relative_error(restored["momentum_after"], dense.buffer) < 1e-5


@pytest.mark.parametrize("num_workers", [1, 3])
def test_rows_of_int8_on_another_number_of_workers(job, num_workers):
    """To the last bit."""
    reader = tf.train.load_checkpoint(checkpoint.latest(str(job(2) / "save_int8")))
    restored = np.load(job(num_workers) / "restore_int8" / "restored.npz")
    for name, dtype in (("rows", np.int8), ("momentum", np.int8), ("rows_scales", "f4"), ("momentum_scales", "f4")):
        saved = reader.get_tensor(f"classifier/{name}")
        assert saved.dtype == dtype and len(saved) == cases.NUM_INSTANCES
        np.testing.assert_array_equal(restored[f"classifier_{name}"], saved)
        assert np.all(np.any(saved.reshape([len(saved), -1]), axis=1))


def test_the_next_steps_of_int8_round_alike_on_any_number_of_workers(job):
    """A number differs by one at most, where sums over the workers differ, and rarely."""
    alone, together = (np.load(job(workers) / "restore_int8" / "restored.npz") for workers in (1, 3))
    assert np.mean(together["after"] != alone["after"]) < 0.01
    assert np.abs((together["after"] - alone["after"]) / alone["scales_after"][:, np.newaxis]).max() <= 1
