"""Views: shapes, seeds, independence of draws, and what the layers do to pixels."""

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data import augment
from instcls_tf.data.augment import make_views
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError

STEP = tf.constant(3, tf.int64)


def _photo(height=40, width=60):
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 255 / height, columns * 255 / width, 127 + 60 * np.sin(rows / 3) * np.cos(columns / 4)]
    return tf.constant(np.stack(planes, axis=-1).astype(np.uint8))


def _views(preset, image, count=8, size=32, seed=0, step=STEP, num_views=2):
    """`count` copies of one image as one batch: `[count, V, S, S, 3]`."""
    return _seen(make_views(preset, size, seed), image, count, step, num_views)


def _seen(views, image, count=8, step=STEP, num_views=2):
    """The same by any `Views`."""
    draws = views.draws(step, count, num_views)
    cut = tf.stack([views.crop(image, draws[i]) for i in range(count)])
    flat = views.augment(tf.reshape(cut, [-1, *cut.shape[2:]]), tf.reshape(draws, [count * num_views, -1]))
    return tf.reshape(flat, cut.shape).numpy()


@pytest.mark.parametrize("preset", ["simclr", "digits"])
def test_views_have_shape_and_are_all_different(preset):
    views = _views(preset, _photo())
    assert views.shape == (8, 2, 32, 32, 3) and views.dtype == np.uint8
    flat = views.reshape(16, -1)
    assert len(np.unique(flat, axis=0)) == 16, "each view of each copy must have draws of its own"


@pytest.mark.parametrize("preset", ["simclr", "digits"])
def test_views_depend_on_seed_and_step_alone(preset):
    first = _views(preset, _photo())
    assert np.array_equal(first, _views(preset, _photo()))
    assert not np.array_equal(first, _views(preset, _photo(), seed=1))
    assert not np.array_equal(first, _views(preset, _photo(), step=STEP + 1))


def test_none_is_the_largest_centred_square():
    image = np.zeros([20, 60, 3], np.uint8)
    image[:, 20:40] = 200
    views = _views("none", tf.constant(image), count=1, size=10, num_views=2)
    assert (views == 200).all() and views.shape == (1, 2, 10, 10, 3)


def test_unknown_preset_is_explained():
    with pytest.raises(UserError) as error:
        make_views("mocha", 32, 0)
    assert str(error.value) == "--augmentation=mocha: must be one of simclr, digits, none"


def test_digits_views_stay_readable():
    digits = open_source("digits").images[:64]
    plain = np.stack([_views("none", tf.constant(image), 1, num_views=1)[0, 0] for image in digits])
    warped = np.stack([_views("digits", tf.constant(image), 1, step=STEP + i)[0] for i, image in enumerate(digits)])
    assert abs(warped.mean() / plain.mean() - 1.0) < 0.15
    assert (warped.reshape(128, -1).max(axis=1) > 120).all(), "no digit leaves the canvas"
    # Among warped digits, a warped digit's nearest is one of its own kind, itself left out.
    source, views = open_source("digits"), make_views("digits", 16, 0)
    draws = views.draws(STEP, source.num_instances, 2)
    images = tf.data.Dataset.from_tensor_slices((source.images, draws))
    cut = tf.stack(list(images.map(views.crop)))
    flat = views.augment(tf.reshape(cut, [-1, 16, 16, 3]), tf.reshape(draws, [-1, views.num_draws]))
    vectors = tf.reshape(flat, [2 * source.num_instances, -1]).numpy().astype(float)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = vectors @ vectors.T
    instance = np.repeat(np.arange(source.num_instances), 2)
    similarities[instance[:, None] == instance[None, :]] = -1
    labels = source.labels[instance]
    assert np.mean(labels[np.argmax(similarities, axis=1)] == labels) > 0.7


def test_half_of_the_views_are_flipped():
    views = make_views("simclr", 32, 0)
    draws = views.draws(STEP, 200, 1)[:, 0]
    assert 70 < np.sum(draws[:, 22].numpy() < 0.5) < 130
    draw = draws[:1].numpy()
    cut = []
    for flip in (0.2, 0.7):
        draw[0, 22] = flip
        cut.append(views.crop(_photo(), tf.constant(draw))[0].numpy())
    assert np.array_equal(cut[0], cut[1][:, ::-1]) and not np.array_equal(*cut)


def _color(image, **columns):
    """`RandomColor(0.5)`, factors 0.6 to 1.4, with neutral draws but the named ones."""
    draws = {"jitter": 0.0, "b": 0.5, "c": 0.5, "s": 0.5, "h": 0.5, "order": 0.0, "grey": 0.9} | columns
    table = tf.constant([list(draws.values())], tf.float32)
    return augment.RandomColor(0.5).augment_images(tf.cast(image[None], tf.float32), table)[0].numpy()


def test_color_neutral_draws_change_nothing():
    assert np.abs(_color(_photo()) - _photo().numpy()).max() < 0.5
    skipped = _color(_photo(), jitter=0.81, b=0.0, c=1.0, s=1.0, h=1.0)
    assert np.abs(skipped - _photo().numpy()).max() < 0.5


def test_color_changes_match_their_definitions():
    image = tf.cast(_photo(), tf.float32) * 0.3 + 60.0  # Far from black and white, so that nothing is clipped.
    pixels = image.numpy()
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(_color(image, b=0.75), 1.2 * pixels, rtol=1e-4)
    np.testing.assert_allclose(_color(image, c=0.25), 0.8 * pixels + 0.2 * luma.mean(), rtol=1e-3)
    np.testing.assert_allclose(_color(image, s=0.75), 1.2 * pixels - 0.2 * luma[..., None], rtol=1e-3)
    np.testing.assert_allclose(_color(image, grey=0.1), np.repeat(luma[..., None], 3, -1), rtol=1e-3)


def test_color_order_matters_and_contrast_uses_the_current_mean():
    image = tf.cast(_photo(), tf.float32) * 0.2 + 80.0
    pixels = image.numpy()
    luma = (pixels @ np.array([0.299, 0.587, 0.114], np.float32)).mean()
    for order in range(24):  # Brightness and contrast commute only if the mean follows the brightness.
        got = _color(image, b=0.25, c=1.0, order=(order + 0.5) / 24)
        np.testing.assert_allclose(got, 0.8 * (1.4 * pixels - 0.4 * luma), rtol=2e-3)
    results = [_color(image, c=1.0, s=0.0, h=1.0, b=0.9, order=(order + 0.5) / 24) for order in range(24)]
    assert 5 < max(np.abs(results[0] - result).max() for result in results) < 60


def test_blur_matches_a_dense_gaussian_and_leaves_half_alone():
    layer = augment.RandomBlur(64)
    images = tf.cast(tf.repeat(_photo(32, 32)[None], 200, 0), tf.float32)
    table = tf.random.stateless_uniform([200, 2], [0, 1])
    blurred = layer.augment_images(images, table).numpy()
    untouched = (blurred == images.numpy()).all(axis=(1, 2, 3))
    assert np.array_equal(untouched, table.numpy()[:, 0] >= 0.5)
    row = int(np.flatnonzero(~untouched)[0])
    sigma = 0.1 + 1.9 * table.numpy()[row, 1]
    taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
    window = images.numpy()[row, 10:17, 12:19]
    np.testing.assert_allclose(
        blurred[row, 13, 15], np.einsum("i,j,ijc->c", taps, taps, window) / taps.sum() ** 2, rtol=1e-3
    )


def test_warp_identity_and_pure_shift():
    layer = augment.RandomWarp()
    image = np.zeros([1, 20, 20, 3], np.float32)
    image[0, 8:12, 8:12] = 255.0
    unit = (1.0 - layer.scale[0]) / (layer.scale[1] - layer.scale[0])
    same = layer.augment_images(tf.constant(image), tf.constant([[0.5, unit, unit, 0.5, 0.5, 0.5]]))
    np.testing.assert_allclose(same, image, atol=1e-2)
    two_pixels = 0.5 + 1.0 / (20 * layer.shift)
    right = layer.augment_images(tf.constant(image), tf.constant([[0.5, unit, unit, 0.5, two_pixels, 0.5]]))
    np.testing.assert_allclose(right, np.roll(image, 2, axis=2), atol=1e-2)


def test_layers_work_by_themselves_as_keras_cv_layers():
    images = tf.cast(tf.repeat(_photo(32, 32)[None], 4, 0), tf.float32)
    for layer in (*make_views("simclr", 32, 0).layers, *make_views("digits", 32, 0).layers):
        assert layer(images).shape == images.shape


def test_strengths_scale_what_they_name():
    image = _photo(40, 40)
    views = make_views("simclr", 40, 0, crop_min_area=1.0, color_strength=0.0, blur_probability=0.0)
    draws = views.draws(STEP, 50, 2)
    cut = tf.stack([views.crop(image, draw) for draw in draws])
    whole = tf.stack([tf.cast(image, tf.float32), tf.cast(image[:, ::-1], tf.float32)])
    assert (tf.reduce_min(tf.reduce_sum((cut[:, :, None] - whole) ** 2, [3, 4, 5]), 2) == 0).numpy().all(), "all of it"
    same = tf.repeat(tf.cast(image, tf.float32)[None], 100, 0)
    seen = views.augment(same, tf.reshape(draws, [100, -1])).numpy()
    grey = (seen[..., :1] == seen).all(axis=(1, 2, 3))
    assert (seen[~grey] == image.numpy()).all() and 8 < grey.sum() < 35
    strong = make_views("simclr", 40, 0, color_strength=2.0, blur_probability=1.0)
    assert strong.layers[0].brightness == 1.6 and strong.layers[0].hue == 0.4 and strong.layers[1].probability == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("augmentation", "digits"),
        ("image_size", 24),
        ("seed", 1),
        ("crop_min_area", 1.0),
        ("color_strength", 2.0),
        ("blur_probability", 1.0),
    ],
)
def test_the_views_of_a_recipe_are_those_of_its_flags(name, value):
    """Each changes the views of the same draws, and as it does by itself."""
    plain = PretrainConfig(augmentation="simclr", image_size=32, crop_min_area=0.5, blur_probability=0.25)
    config = plain.replace(**{name: value})
    settings = ("crop_min_area", "color_strength", "blur_probability")
    given = {setting: getattr(config, setting) for setting in settings}
    seen = _seen(augment.views_of(config), _photo())
    expected = make_views(config.augmentation, config.image_size, config.seed, **given)
    np.testing.assert_array_equal(seen, _seen(expected, _photo()))
    assert not np.array_equal(seen, _seen(augment.views_of(plain), _photo()))


def test_any_keras_cv_layer_can_follow_the_crop():
    import keras_cv

    views = make_views("simclr", 32, 0, layers=[keras_cv.layers.RandomBrightness(0.5), augment.RandomColor()])
    draws = views.draws(STEP, 4, 2)
    assert draws.shape == (4, 2, 30), "23 for crop and flip, seven for the keyed layer"
    cut = tf.stack([views.crop(_photo(), draw) for draw in draws])
    seen = views.augment(tf.reshape(cut, [-1, 32, 32, 3]), tf.reshape(draws, [8, -1]))
    assert seen.shape == (8, 32, 32, 3) and seen.dtype == tf.uint8
