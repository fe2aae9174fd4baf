"""A checkpoint written by two workers is one tensor, and any number of workers can go on from it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import checkpoint
from tests import reference
from tests.parallel import cases
from tests.parallel.launch import launch


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    launch(2, "save", folder)
    return folder


def test_slices_read_as_one_tensor(saved):
    reader = tf.train.load_checkpoint(checkpoint.latest(str(saved)))
    np.testing.assert_array_equal(reader.get_tensor("classifier/rows"), cases.weights())
    np.testing.assert_array_equal(reader.get_tensor("classifier/momentum"), -cases.weights())
    expected = reference.hard_negatives(cases.weights(), cases.HARD)
    np.testing.assert_array_equal(reader.get_tensor("classifier/hard"), expected)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_restores_on_another_number_of_workers(saved, num_workers):
    launch(num_workers, "restore", saved)
    restored = np.load(saved / f"restored_by_{num_workers}.npz")
    np.testing.assert_array_equal(restored["rows"], cases.weights())
    np.testing.assert_array_equal(restored["momentum"], -cases.weights())
    np.testing.assert_array_equal(restored["lists"], reference.hard_negatives(cases.weights(), cases.HARD))
    assert np.abs(restored["kernel"]).max() > 0
