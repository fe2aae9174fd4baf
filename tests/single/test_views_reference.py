"""Whole views against the reference by Pillow: with the same draws, and in the mean over other ones."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.data import view_layers
from instcls_tf.data.augment import make_views
from tests import views_reference

SIZE, VIEWS = 16, 200
SETTINGS = {"min_area": 0.2, "strength": 1.0, "blur_probability": 0.5}


def _photos(count=16):
    """Landscapes and portraits, dull and garish, dark and bright, with coloured areas, gradients and grain."""
    random = np.random.default_rng(0)
    photos = []
    for index in range(count):
        height, width = ((30, 40), (40, 30), (25, 60), (32, 32))[index % 4]
        contrast = random.uniform(0.2, 1.0)
        low = random.uniform(0.0, 255.0 * (1.0 - contrast), 3)
        colours = (low + 255.0 * contrast * random.random((3, 4, 3))).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC), np.float64)
        photos.append(np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8))
    return photos


def _ours(photos, draws):
    """Views `[photos, V, S, S, 3]` by draws `[photos, V, 32]`."""
    views = make_views("simclr", SIZE, 0, crop_min_area=SETTINGS["min_area"])
    shapes = [tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([10, views.num_draws])]
    crop = tf.function(views.crop, input_signature=shapes)
    cut = [crop(photo, table) for photo, tables in zip(photos, draws) for table in tf.split(tables, VIEWS // 10)]
    seen = views.augment(tf.concat(cut, axis=0), tf.reshape(draws, [-1, views.num_draws]))
    return tf.reshape(seen, [len(photos), VIEWS, SIZE, SIZE, 3]).numpy().astype(np.float64)


def _reference(photos, draws, **settings):
    settings = {**SETTINGS, **settings}
    rows = [[views_reference.view(p, SIZE, row, **settings) for row in t] for p, t in zip(photos, draws.tolist())]
    return np.array(rows)


def _statistics(views):
    """Mean and deviation per view and channel, `[photos, V, 6]`."""
    return np.concatenate([views.mean(axis=(2, 3)), views.std(axis=(2, 3))], axis=2)


def _correlations(some, others):
    return [np.corrcoef(some[..., k].ravel(), others[..., k].ravel())[0, 1] for k in range(some.shape[-1])]


def test_views_are_the_references_with_the_same_draws():
    photos = _photos()
    draws = tf.random.stateless_uniform([len(photos), VIEWS, views_reference.NUM_DRAWS], [5, 6])
    ours, expected = _ours(photos, draws), _reference(photos, draws.numpy())
    assert min(_correlations(_statistics(ours), _statistics(expected))) > 0.995
    distances = np.abs(ours - expected).mean(axis=(2, 3, 4))
    # They differ in where values are clipped: there after each change.
    assert np.median(distances) < 1.5 and np.mean(distances) < 2.5


@pytest.mark.parametrize("is_grey", [True, False], ids=["grey", "colour"])
def test_grey_views_and_coloured_ones_are_the_references(is_grey):
    """A grey view is that of the clipped colours: of colours beyond white it would be brighter."""
    photos = _photos(8)
    draws = tf.random.stateless_uniform([len(photos), VIEWS, views_reference.NUM_DRAWS], [5, 6])
    expected = _reference(photos, draws.numpy(), jitter=views_reference.jitter_unrounded)
    of_kind = (draws.numpy()[..., 29] < 0.2) == is_grey
    distances = np.abs(_ours(photos, draws) - expected).mean(axis=(2, 3, 4))[of_kind]
    assert np.mean(distances) < 1.5 and np.quantile(distances, 0.95) < 5.0


def test_means_over_many_other_draws_are_the_references():
    photos = _photos()
    draws = tf.random.stateless_uniform([len(photos), VIEWS, views_reference.NUM_DRAWS], [7, 8])
    others = np.random.default_rng(1).random([len(photos), VIEWS, views_reference.NUM_DRAWS])
    ours, expected = _statistics(_ours(photos, draws)), _statistics(_reference(photos, others))
    assert min(_correlations(ours.mean(axis=1), expected.mean(axis=1))) > 0.95
    # How much the views of one photograph differ among themselves is the strength of the jitter.
    np.testing.assert_allclose(ours.std(axis=1).mean(axis=0), expected.std(axis=1).mean(axis=0), rtol=0.12)


@pytest.mark.parametrize("side", [16, 64, 224])
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_blur_is_that_of_a_tenth_of_the_side(side, sigma):
    """At 224 pixels ours ends at four deviations, eight pixels, and the reference at eleven."""
    noise = np.random.default_rng(3).integers(0, 256, (side, side, 3)).astype(np.float64)
    draws = [0.0, sigma]
    blurred = view_layers.RandomBlur(side).augment_images(tf.constant(noise[None], tf.float32), tf.constant([draws]))
    np.testing.assert_allclose(blurred[0], views_reference.blur(noise, 0.5, draws), atol=0.1)


def test_hue_turns_as_in_hsv():
    random = np.random.default_rng(2)
    colours = random.integers(0, 256, (4, 6, 5, 3))
    colours[0, 0] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90], [0, 0, 0]]
    colours[0, 1] = [[200, 200, 10], [10, 200, 200], [200, 10, 200], [255, 255, 255], [1, 0, 0]]
    turns = np.array([0.1, -0.2, 0.5, 0.0], np.float32)
    turned = view_layers._turn_hue(tf.constant(colours, tf.float32), tf.constant(turns)).numpy()
    for image, turn, got in zip(colours, turns, turned):
        for pixel, seen in zip(image.reshape(-1, 3) / 255.0, got.reshape(-1, 3)):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected = colorsys.hsv_to_rgb((hue + float(turn)) % 1.0, saturation, value)
            np.testing.assert_allclose(seen, np.multiply(expected, 255.0), atol=1e-2)
    assert turned[0, 0, 0] == pytest.approx([255.0, 153.0, 0.0], abs=0.1), "a tenth of a turn from red: orange"


def test_strength_one_is_simclrs():
    layer = view_layers.RandomColor()
    assert (layer.brightness, layer.contrast, layer.saturation, layer.hue) == (0.8, 0.8, 0.8, 0.2)
    grey = tf.fill([1, 8, 8, 3], 50.0)
    draws = tf.constant([[0.0, 1.0, 0.5, 0.5, 0.5, 0.0, 0.9]])
    assert layer.augment_images(grey, draws).numpy() == pytest.approx(90.0, abs=1e-3), "brightness is a factor of 1.8"
    strongest = view_layers.RandomColor(2.5)
    black = strongest.augment_images(grey, tf.constant([[0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.9]]))
    assert black.numpy().max() == 0.0, "factors below 0 would be negatives: torchvision's range ends at 0"
