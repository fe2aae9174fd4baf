"""Whether two networks differ by more than chance: how often equally good ones do, and that better ones are found."""

from __future__ import annotations

import numpy as np
import pytest

from instcls_tf.evaluation.paired import OF_HITS, compared

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 4, 5, 8, 30, 400])
@pytest.mark.parametrize("accuracy", [0.02, 0.5, 0.98])
def test_equally_good_networks_are_rarely_told_apart_by_labels(count, accuracy):
    """Images are easy or hard for both alike; all signs of eight images that differ have 7 % at most."""
    ease = RANDOM.beta(2 * accuracy, 2 * (1 - accuracy), size=[1000, 1, count])
    hits = RANDOM.random([1000, 2, count]) < ease
    assert np.mean([bool(compared(*both, OF_HITS)) for both in hits]) < 0.08


def test_better_networks_are_found():
    hits = RANDOM.random([100, 2, 400]) < np.array([[0.6], [0.4]])
    assert [compared(*both, OF_HITS) for both in hits] == [1] * 100
    assert [compared(*both[::-1], OF_HITS) for both in hits[:3]] == [-1] * 3


def test_of_a_handful_nothing_is_told():
    ones = np.ones(5, bool)
    assert compared(ones[:4], ~ones[:4], OF_HITS) is None
    assert compared(ones, ~ones, OF_HITS) == 1
    assert compared(ones, ones, OF_HITS) == 0
