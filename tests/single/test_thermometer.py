"""The expected losses: known numbers, and what the dense reference measures."""

import math

import numpy as np
import pytest

from instcls_tf import thermometer
from tests import reference


@pytest.mark.parametrize(
    ("num_instances", "start", "floor"), [(1_281_167, 14.24, 7.57), (50_000, 10.99, 4.34)], ids=["imagenet", "cifar"]
)
def test_numbers_of_known_datasets(num_instances, start, floor):
    assert thermometer.expected_start(num_instances, 128, 0.15) == pytest.approx(start, abs=0.005)
    assert thermometer.expected_floor(num_instances, 128, 0.15) == pytest.approx(floor, abs=0.005)
    assert thermometer.expected_losses(num_instances, 128, 0.15) == {
        "loss_expected_start": thermometer.expected_start(num_instances, 128, 0.15),
        "loss_floor": thermometer.expected_floor(num_instances, 128, 0.15),
    }


def test_start_and_floor_are_what_random_vectors_give():
    random = np.random.default_rng(0)
    weights = random.normal(size=[3000, 32])
    ids = np.arange(200)
    y = reference.labels(ids, None, 0.0, len(weights))
    start, *_ = reference.softmax_loss(random.normal(size=[200, 32]), weights, y, 0.3, "marginal")
    assert start == pytest.approx(thermometer.expected_start(3000, 32, 0.3), abs=0.1)
    # Every embedding on its own row: cosine 1, and the other rows are spread as ever.
    floor, *_ = reference.softmax_loss(weights[ids], weights, y, 0.3, "marginal")
    assert floor == pytest.approx(thermometer.expected_floor(3000, 32, 0.3), abs=0.1)


def test_edges_stay_finite():
    assert thermometer.expected_start(1, 128, 0.15) == pytest.approx(1 / (2 * 128 * 0.15**2))
    assert 0 <= thermometer.expected_floor(2, 128, 0.15) < 0.01
    assert math.isfinite(thermometer.expected_floor(10**9, 2, 1e-4))
