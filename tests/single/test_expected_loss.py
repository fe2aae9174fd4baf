"""The expected losses: known numbers, and what the dense reference measures."""

import math

import numpy as np
import pytest

from instcls_tf.classifier import expected_loss
from instcls_tf.config import PretrainConfig
from tests import reference


@pytest.mark.parametrize(
    ("num_instances", "start", "floor"), [(1_281_167, 14.24, 7.57), (50_000, 10.99, 4.34)], ids=["imagenet", "cifar"]
)
def test_numbers_of_known_datasets(num_instances, start, floor):
    assert expected_loss.expected_start(num_instances, 128, 0.15) == pytest.approx(start, abs=0.005)
    assert expected_loss.expected_floor(num_instances, 128, 0.15) == pytest.approx(floor, abs=0.005)
    assert expected_loss.expected_losses(num_instances, 128, 0.15) == {
        "loss_expected_start": expected_loss.expected_start(num_instances, 128, 0.15),
        "loss_floor": expected_loss.expected_floor(num_instances, 128, 0.15),
    }


def test_start_and_floor_are_what_random_vectors_give():
    random = np.random.default_rng(0)
    weights = random.normal(size=[3000, 32])
    ids = np.arange(200)
    y = reference.labels(ids, None, 0.0, len(weights))
    start, *_ = reference.softmax_loss(random.normal(size=[200, 32]), weights, y, 0.3, "marginal")
    assert start == pytest.approx(expected_loss.expected_start(3000, 32, 0.3), abs=0.1)
    # Every embedding on its own class weight: cosine 1, and the others are spread as ever.
    floor, *_ = reference.softmax_loss(weights[ids], weights, y, 0.3, "marginal")
    assert floor == pytest.approx(expected_loss.expected_floor(3000, 32, 0.3), abs=0.1)


def test_a_sample_of_classes_is_what_a_row_is_compared_with():
    """Its own class and 512 others, whatever N is; never more than there are."""
    sampled = expected_loss.expected_losses(100_000, 128, 0.15, sampled_classes=512)
    assert sampled == expected_loss.expected_losses(513, 128, 0.15)
    assert sampled["loss_expected_start"] == pytest.approx(math.log(513) + 1 / (2 * 128 * 0.15**2))
    assert expected_loss.expected_losses(100, 128, 0.15, sampled_classes=100) == expected_loss.expected_losses(
        100, 128, 0.15
    )


def test_edges_stay_finite():
    assert expected_loss.expected_start(1, 128, 0.15) == pytest.approx(1 / (2 * 128 * 0.15**2))
    assert 0 <= expected_loss.expected_floor(2, 128, 0.15) < 0.01
    assert math.isfinite(expected_loss.expected_floor(10**9, 2, 1e-4))


def test_a_loss_that_cannot_be_is_explained():
    config = PretrainConfig(temperature=0.15, learning_rate=3.0)
    for loss in (7.6, 10.0, 14.3, 15.0):
        assert expected_loss.unexpected(loss, 1_281_167, config) == ""
    assert expected_loss.unexpected(15.3, 1_281_167, config).startswith(
        "warning: after the first epoch the loss is 15.30, above the 14.24 of random class weights: "
    )
    assert "--learning_rate=3 too high" in expected_loss.unexpected(15.3, 1_281_167, config)
    assert expected_loss.unexpected(0.1, 1_281_167, config).startswith(
        "warning: after the first epoch the loss is 0.10, below the 7.57 that 1281167 classes with different images"
    )
    # A sample has fewer classes.
    assert expected_loss.unexpected(5.0, 1_281_167, config.replace(sampled_classes=2**12, smoothing=0.0)) == ""
