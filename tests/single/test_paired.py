"""Whether two networks differ by more than chance: how often equally good ones do, and that better ones are found."""

from __future__ import annotations

import numpy as np
import pytest

from instcls_tf.evaluation.gauge import shared_neighbours
from instcls_tf.evaluation.paired import OF_AGREEMENTS, OF_HITS, compared

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 4, 5, 8, 30, 400])
@pytest.mark.parametrize("accuracy", [0.02, 0.5, 0.98])
def test_equally_good_networks_are_rarely_told_apart_by_labels(count, accuracy):
    """Images are easy or hard for both alike; all signs of eight images that differ have 7 % at most."""
    ease = RANDOM.beta(2 * accuracy, 2 * (1 - accuracy), size=[1000, 1, count])
    hits = RANDOM.random([1000, 2, count]) < ease
    assert np.mean([bool(compared(*both, OF_HITS)) for both in hits]) < 0.08


def test_equally_good_networks_are_rarely_told_apart_by_the_agreement_of_views():
    """Whose images are not independent: at two standard errors one pair in eight would be told apart."""
    found = []
    for _ in range(150):
        views = RANDOM.normal(size=[1, 64, 16]) + 0.7 * RANDOM.normal(size=[2, 64, 16])
        both = [shared_neighbours(*(views + 0.7 * RANDOM.normal(size=views.shape))) for _ in range(2)]
        found.append(bool(compared(*both, OF_AGREEMENTS)))
    assert np.mean(found) < 0.06


def test_better_networks_are_found():
    hits = RANDOM.random([100, 2, 400]) < np.array([[0.6], [0.4]])
    assert [compared(*both, OF_HITS) for both in hits] == [1] * 100
    assert [compared(*both[::-1], OF_HITS) for both in hits[:3]] == [-1] * 3


def test_of_a_handful_nothing_is_told():
    ones = np.ones(5, bool)
    assert compared(ones[:4], ~ones[:4], OF_HITS) is None
    assert compared(ones, ~ones, OF_HITS) == 1
    assert compared(ones, ones, OF_HITS) == 0
