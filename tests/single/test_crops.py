"""Random resized crops against torchvision's semantics, rewritten in plain Python."""

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.data import augment
from instcls_tf.data.augment import make_views
from tests import views_reference

SHAPES = [(375, 500), (500, 375), (400, 1000), (64, 64), (1000, 400)]


def _statistics(boxes, height, width):
    """Mean area, share of boxes with a whole side of the image, mean aspect's logarithm, mean place."""
    top, left, h, w = np.asarray(boxes).T
    touching = (h == height) | (w == width)
    return {
        "area": np.mean(h * w) / (height * width),
        "whole sides": np.mean(touching),
        "aspect": np.mean(np.log(w / h)),
        "top": np.mean((top + h / 2) / height),
        "left": np.mean((left + w / 2) / width),
    }


@pytest.mark.parametrize("min_area", [0.2, 0.08])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_boxes_are_distributed_as_torchvisions(height, width, min_area):
    draws = tf.random.stateless_uniform([40_000, 22], [1, 2])
    boxes = augment.random_boxes(tf.constant([height, width]), draws, min_area).numpy()
    numbers = np.random.default_rng(0).random([40_000, 22])
    expected = [views_reference.crop_box(height, width, min_area, row) for row in numbers.tolist()]
    got, wanted = _statistics(boxes, height, width), _statistics(expected, height, width)
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, abs=0.01), name
    areas = [np.quantile(np.prod(np.asarray(some)[:, 2:], axis=1), np.arange(1, 10) / 10) for some in (boxes, expected)]
    np.testing.assert_allclose(*np.divide(areas, height * width), atol=0.015)


@pytest.mark.parametrize(("height", "width"), [*SHAPES, (1, 1), (2, 300), (33, 7), (10, 40)])
def test_boxes_are_torchvisions_draw_for_draw(height, width):
    """The same uniform numbers give the same boxes; in the narrow images many tries fail, or all of them."""
    draws = tf.random.stateless_uniform([1000, 22], [3, 4])
    boxes = augment.random_boxes(tf.constant([height, width]), draws, 0.2).numpy()
    expected = np.array([views_reference.crop_box(height, width, 0.2, row) for row in draws.numpy().tolist()])
    different = np.abs(boxes - expected).max(axis=1)
    assert np.mean(different > 0) < 0.005 and different.max() <= 1, "float32 may round a half to the other side"


def test_views_cut_the_boxes_they_draw():
    """Corners of a view of a ramp show where its crop began and ended."""
    rows, columns = np.mgrid[:80, :120]
    ramp = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)
    views = make_views("simclr", 64, 0)
    draws = views.draws(tf.constant(5, tf.int64), 40, 2)
    for draw in draws:
        boxes = augment.random_boxes(tf.constant([80, 120]), draw[:, :22], 0.2).numpy()
        for view, (top, left, height, width), flip in zip(views.crop(tf.constant(ramp), draw), boxes, draw[:, 22]):
            view = (view[:, ::-1] if flip < 0.5 else view).numpy()
            means = view.mean(axis=(0, 1))
            assert means[0] == pytest.approx(top + (height - 1) / 2, abs=0.2)
            assert means[1] == pytest.approx(left + (width - 1) / 2, abs=0.2)
            assert view[0, 0, 0] < view[-1, 0, 0] and view[0, 0, 1] < view[0, -1, 1]


def test_smallest_area_of_one_takes_all_that_fits():
    draws = tf.random.stateless_uniform([500, 22], [7, 8])
    boxes = augment.random_boxes(tf.constant([64, 64]), draws, 1.0).numpy()
    assert (boxes == [0, 0, 64, 64]).all(), "no other aspect has that area, the fallback is the whole square"
