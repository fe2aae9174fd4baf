"""Views by the compiled kernels against those by TensorFlow's operations, and what the kernels refuse."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.data import augment
from instcls_tf.data.kernels import views
from instcls_tf.data.view_layers import RandomBlur, RandomColor


@pytest.fixture
def both(monkeypatch):
    """What `make` gives by the kernels, and by TensorFlow's operations."""
    assert views.operations() is not None, "./scripts/setup.sh compiles the kernels"

    def results(make) -> tuple[np.ndarray, np.ndarray]:
        compiled = make().numpy()
        with monkeypatch.context() as patch:
            patch.setattr(views, "operations", lambda: None)
            return compiled, make().numpy()

    return results


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, [*shape, 3]).astype(np.uint8)


@pytest.mark.parametrize("size", [1, 15, 32])
@pytest.mark.parametrize("shape", [(1, 1), (40, 70), (33, 7), (300, 200), (2, 90)])
def test_crops(both, shape, size):
    """Shrunk, enlarged, and each along one side only; half of the views are mirrored."""
    recipe = augment.make_views("simclr", size, seed=0, crop_min_area=0.05)
    draws = recipe.draws(tf.constant(3, tf.int64), 8, 1)[:, 0]
    compiled, portable = both(lambda: recipe.crop(tf.constant(pixels(*shape)), draws))
    assert compiled.shape == (8, size, size, 3)
    np.testing.assert_allclose(compiled, portable, atol=2e-3)


def test_crops_of_an_image_that_is_a_part_of_a_larger_one():
    """Rows are as long as the image, not as the box: what lies outside of the box does not matter."""
    image = pixels(20, 30)
    boxes, mirrored = tf.constant([[3, 5, 11, 13]]), tf.constant([False])
    crop = views.operations().InstclsCropViews
    alone = crop(image=image[3:14, 5:18].copy(), boxes=[[0, 0, 11, 13]], mirrored=mirrored, size=9)
    np.testing.assert_array_equal(crop(image=image, boxes=boxes, mirrored=mirrored, size=9), alone)
    flipped = crop(image=image, boxes=boxes, mirrored=[True], size=9)
    np.testing.assert_array_equal(flipped, np.flip(alone, axis=2))


@pytest.mark.parametrize("side", [1, 5, 24])
def test_colours(both, side):
    """All 24 orders, jittered or not, grey or not; a batch of more pixels than fit into a block of the kernel."""
    images = pixels(96, side, side).astype(np.float32)
    table = np.random.default_rng(1).uniform(size=[96, 7]).astype(np.float32)
    table[:, 5] = (np.arange(96) % 24 + 0.5) / 24
    compiled, portable = both(lambda: RandomColor(1.0).augment_images(tf.constant(images), tf.constant(table)))
    np.testing.assert_allclose(compiled, portable, atol=5e-3)
    untouched = (table[:, 0] >= 0.8) & (table[:, 6] >= 0.2)
    assert untouched.any()
    np.testing.assert_allclose(compiled[untouched], images[untouched], atol=1e-4)


def test_colours_of_oblong_images(both):
    images, table = pixels(6, 4, 9).astype(np.float32), np.random.default_rng(2).uniform(size=[6, 7]).astype(np.float32)
    compiled, portable = both(lambda: RandomColor(0.5).augment_images(tf.constant(images), tf.constant(table)))
    np.testing.assert_allclose(compiled, portable, atol=5e-3)


@pytest.mark.parametrize("side", [3, 40, 100])
def test_blur(both, side):
    """Radii of 1, 2 and 5 pixels; of an image that is hardly larger than its kernel, too."""
    images = pixels(16, side, side).astype(np.float32)
    table = np.random.default_rng(3).uniform(size=[16, 2]).astype(np.float32)
    compiled, portable = both(lambda: RandomBlur(side, 0.5).augment_images(tf.constant(images), tf.constant(table)))
    np.testing.assert_allclose(compiled, portable, atol=2e-3)
    untouched = table[:, 0] >= 0.5
    np.testing.assert_array_equal(compiled[untouched], images[untouched])


def test_inputs_stay_as_they_are():
    """The kernels write in place only where nobody else holds the tensor."""
    images = tf.constant(pixels(2, 8, 8).astype(np.float32))
    before = images.numpy().copy()
    RandomColor(1.0).augment_images(images, tf.fill([2, 7], 0.1))
    RandomBlur(8, 1.0).augment_images(images, tf.fill([2, 2], 0.5))
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda of: of.InstclsCropViews(image=pixels(5, 5), boxes=[[1, 0, 5, 5]], mirrored=[True], size=2),
        lambda of: of.InstclsCropViews(image=pixels(5, 5), boxes=[[0, -1, 5, 5]], mirrored=[True], size=2),
        lambda of: of.InstclsCropViews(image=pixels(5, 5), boxes=[[0, 0, 0, 5]], mirrored=[True], size=2),
        lambda of: of.InstclsCropViews(image=pixels(5, 5), boxes=[[0, 0, 5, 5]], mirrored=[True, False], size=2),
        lambda of: of.InstclsBlurViews(images=tf.zeros([2, 4, 5, 3]), sigmas=[1.0, 1.0], radius=1),
        lambda of: of.InstclsBlurViews(images=tf.zeros([2, 4, 4, 3]), sigmas=[1.0], radius=1),
        lambda of: of.InstclsColourViews(
            images=tf.zeros([1, 4, 4, 3]), factors=[[1.0, 1.0, 1.0]], turns=[0.0], orders=[[0, 1, 2, 2]], greys=[False]
        ),
        lambda of: of.InstclsColourViews(
            images=tf.zeros([1, 4, 4, 3]), factors=[[1.0, 1.0]], turns=[0.0], orders=[[0, 1, 2, 3]], greys=[False]
        ),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(tf.errors.InvalidArgumentError):
        call(views.operations())
