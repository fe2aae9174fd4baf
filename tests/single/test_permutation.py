"""Permutations whose places are computed one by one: every id comes to every place equally often."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.data.permutation import CLASS_SAMPLE, EPOCH_ORDER, permute


def ids_of(size: int, places: int, numbers: int, seed: int = 0, **use: int) -> np.ndarray:
    """`[numbers, places]` ids at the first places of so many permutations."""

    @tf.function
    def all_of_them() -> tf.Tensor:
        first = tf.range(places, dtype=tf.int64)
        return tf.map_fn(lambda number: permute(first, seed, number, size, **use), tf.range(numbers, dtype=tf.int64))

    return all_of_them().numpy()


@pytest.mark.parametrize(("size", "seeds"), [(501, 4), (1000, 2), (50_000, 1)])
def test_ids_come_to_the_first_places_equally_often(size, seeds):
    """z scores of how often; 2.0 with small integers for a key. Their deviation is known to a sixtieth and better."""
    epochs, first = 1000, size // 20
    counts = np.stack([np.bincount(ids_of(size, first, epochs, s).ravel(), minlength=size) for s in range(seeds)])
    share = first / size
    scores = (counts - epochs * share) / np.sqrt(epochs * share * (1 - share))
    assert 0.95 < scores.std() < 1.05
    assert np.abs(scores).max() < 5.5


def test_the_ids_of_a_place_have_the_mean_of_all():
    size, epochs = 50_000, 1000
    ids = ids_of(size, 2500, epochs)
    scores = (ids.mean(axis=0) - (size - 1) / 2) / np.sqrt((size**2 - 1) / 12 / epochs)
    assert 0.95 < scores.std() < 1.05
    assert np.abs(scores).max() < 5.5


def test_uses_of_one_seed_have_permutations_of_their_own():
    orders = [ids_of(1000, 1000, 1, use=use)[0] for use in (EPOCH_ORDER, CLASS_SAMPLE)]
    assert np.mean(orders[0] == orders[1]) < 0.01
    assert abs(np.corrcoef(*orders)[0, 1]) < 0.15
