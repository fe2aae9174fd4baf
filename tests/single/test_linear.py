"""The frozen encoder's proof, the protocol's classifier, and the sweep on stored features against scikit-learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize

from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.labelled import Splits, open_splits, take
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.evaluation import frozen, linear
from instcls_tf.evaluation.features import Features, extract
from instcls_tf.evaluation.linear_cached import cached_accuracy
from instcls_tf.evaluation.recipes import CachedRecipe, FinetuneRecipe, LinearRecipe
from instcls_tf.progress import Progress

QUIET = Progress(visible=False)
# With zeroed gammas an untrained network would see nothing of 8 x 8 pixels but a corner.
CONFIG = PretrainConfig(
    dataset="digits", image_size=8, encoder="resnet10", width_multiplier=0.125, stem="small", embedding_size=16,
    zero_init_last_gamma=False,
)  # fmt: skip
SEEN = {"image_size": 8, "center_crop_fraction": 1.0}
QUICK = LinearRecipe(epochs=6, batch_size=200, learning_rate=1.0, augmentation="none")


@pytest.fixture(scope="module")
def splits() -> Splits:
    train, test = open_splits("digits")
    return Splits(take(train, np.arange(400)), test)


@pytest.fixture
def encoder(splits) -> tf.keras.Model:
    """A random network whose BN has seen the images: one that has not says next to nothing about them."""
    model = networks.make_encoder(CONFIG)
    ((images, _, _),) = pipeline.inference_batches(splits.train, image_size=8, batch_size=400)
    for _ in range(30):
        model(images, training=True)
    return model


def evaluate(encoder, splits, recipe=QUICK):
    seen = extract(encoder.get_layer(recipe.features), splits.train, image_size=8).vectors
    scaling = linear.scaling_of(recipe.normalize_features, seen)
    return linear.linear_accuracy(encoder, splits, recipe, **SEEN, scaling=scaling, progress=QUIET)


def test_learns_and_leaves_the_encoder_alone(encoder, splits):
    before = [variable.numpy() for variable in encoder.variables]
    recipe = dataclasses.replace(QUICK, epochs=15, normalize_features="standardize", learning_rate=0.05)
    result = evaluate(encoder, splits, recipe)
    assert 0.35 < result["top1"] < result["top5"] <= 1
    assert result["examples"] == 360
    for variable, value in zip(encoder.variables, before):
        np.testing.assert_array_equal(variable, value)
    again = evaluate(encoder, splits, recipe)
    assert again["top1"] == pytest.approx(result["top1"], abs=0.01)


def test_batch_norm_left_in_training_mode_is_noticed(encoder, splits, monkeypatch):
    monkeypatch.setattr(frozen, "frozen_features", lambda backbone, images: backbone(images, training=True))
    with pytest.raises(frozen.EncoderMovedError, match=r"variable bn1/moving_mean:0 changed during the linear eval"):
        evaluate(encoder, splits, dataclasses.replace(QUICK, epochs=1))


@pytest.mark.parametrize("which", ["gamma", "moving_variance"])
def test_the_check_sees_the_last_bit_of_any_variable(encoder, which):
    layer = networks.batch_norm_layers(encoder)[-1]
    variable = getattr(layer, which)
    with pytest.raises(frozen.EncoderMovedError, match=f"{layer.name}/{which}"), frozen.stays_frozen(encoder):
        variable.assign(np.nextafter(variable.numpy(), np.float32(2)))


def test_divergence_is_one_sentence(encoder, splits):
    with pytest.raises(UserError, match=r"^--learning_rate=1e\+38: diverged at step \d+, wanted a lower one$"):
        linear.linear_accuracy(
            encoder,
            splits,
            dataclasses.replace(QUICK, epochs=2, learning_rate=1e38),
            **SEEN,
            scaling=linear.scaling_of("none", np.zeros([1, 64])),
            progress=QUIET,
        )


def test_views_of_the_protocol_are_crops_and_flips(splits):
    """Of images that are one colour nothing is changed; of a ramp parts are cut, and half of them are mirrored."""
    views = linear.make_linear_views("crop_flip", 8, seed=0, crop_min_area=0.08, center_crop_fraction=1.0)
    draws = views.draws(tf.constant(0, tf.int64), 50, 1)
    flat = tf.fill([16, 16, 3], tf.constant(77, tf.uint8))
    ramp = tf.broadcast_to(np.arange(16, dtype=np.uint8)[None, :, None], [16, 16, 3])

    def views_of(image):
        crops = tf.concat([views.crop(image, draws[index]) for index in range(50)], axis=0)
        return views.augment(crops, draws[:, 0]).numpy()

    np.testing.assert_array_equal(views_of(flat), np.full([50, 8, 8, 3], 77))
    ramps = views_of(ramp).astype(int)
    assert ramps.mean(axis=(1, 2, 3)).std() > 0.5
    mirrored = np.sum(ramps[:, 0, 0, 0] > ramps[:, 0, -1, 0])
    assert 15 < mirrored < 35


def test_crops_of_the_protocol_go_down_to_a_twelfth():
    """Of a 100 x 100 image whose pixels say where they are, the spread of a view's pixels is its crop's size."""
    rows, columns = np.mgrid[:100, :100]
    where = tf.constant(np.stack([rows, columns, rows], axis=-1).astype(np.uint8))
    for recipe in (LinearRecipe(), FinetuneRecipe()):
        views = linear.make_linear_views(recipe.augmentation, 32, 0, recipe.crop_min_area, 0.5)
        draws = views.draws(tf.constant(0, tf.int64), 150, 2)
        views = tf.concat([views.crop(where, draw) for draw in draws], axis=0).numpy()
        spans = views.max(axis=(1, 2)) - views.min(axis=(1, 2))  # [300, 3]
        areas = spans[:, 0] * spans[:, 1] / 100**2
        assert 0.05 < areas.min() < 0.12 and areas.max() > 0.8 and abs(areas.mean() - 0.46) < 0.05


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_without_random_crops_it_trains_on_what_it_judges_by(splits, fraction):
    settings = {"batch_size": 4, "center_crop_fraction": fraction}
    recipe = dataclasses.replace(QUICK, augmentation="none")
    labels = np.arange(splits.train.num_instances)  # so that a label is an id
    ((images, ids), *_) = linear.labelled_batches(splits.train, recipe, 8, labels, steps=1, **settings)
    judged = {}
    for batch, batch_ids, _ in pipeline.inference_batches(splits.train, image_size=8, **settings):
        judged.update(zip(batch_ids.numpy().tolist(), batch.numpy()))
    for image, instance_id in zip(images.numpy(), ids.numpy().tolist()):
        np.testing.assert_array_equal(image, judged[instance_id])


def test_judges_on_the_centre(encoder, splits, monkeypatch):
    """The test images that are seen are what `inference_batches` gives for the fraction, and other ones for another."""
    seen = []
    real = linear.accuracy_of

    def watch(predict, source, **settings):
        seen.append(settings["center_crop_fraction"])
        return real(predict, source, **settings)

    monkeypatch.setattr(linear, "accuracy_of", watch)
    scaling = linear.scaling_of("none", np.zeros([1, 64]))
    results = [
        linear.linear_accuracy(
            encoder, splits, dataclasses.replace(QUICK, epochs=2), image_size=8, center_crop_fraction=fraction,
            scaling=scaling, progress=QUIET,
        )["top1"]
        for fraction in (1.0, 0.5)
    ]  # fmt: skip
    assert seen == [1.0, 0.5] and results[0] != results[1]


def test_standardized_features():
    rows = np.random.default_rng(0).normal(3, [1.0, 20.0, 0.0], size=[1000, 3]).astype(np.float32)
    scaled = linear.scaling_of("standardize", rows)(rows)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 1, 0], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(linear.scaling_of("l2", rows)(rows), axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(linear.scaling_of("none", rows)(rows), rows)


def test_every_worker_knows_the_labels_of_its_images(splits):
    labels = np.asarray(splits.train.labels)
    recipe = dataclasses.replace(QUICK, augmentation="none")
    batches = linear.labelled_batches(
        splits.train, recipe, 8, labels, batch_size=100, steps=4, center_crop_fraction=1.0
    )
    seen = [
        (image.tobytes(), label) for images, batch in batches for image, label in zip(images.numpy(), batch.numpy())
    ]
    inference = pipeline.inference_batches(splits.train, image_size=8, batch_size=400)
    ((images, _, expected),) = inference
    assert sorted(seen) == sorted((image.tobytes(), label) for image, label in zip(images.numpy(), expected.numpy()))


# --------------------------------------------------------------------------------------------------- stored features


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    """Half of the scans to learn from, the other 897 to be judged by: half a point is four of them."""
    scans, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    scans, labels = scans[order].astype(np.float32), labels[order].astype(np.int32)
    return Features(scans[:900], labels[:900]), Features(scans[900:], labels[900:])


SCALERS = {
    "none": lambda train, rows: rows,
    "l2": lambda train, rows: normalize(rows),
    "standardize": lambda train, rows: StandardScaler().fit(train).transform(rows),
}


@pytest.mark.parametrize("normalization", SCALERS)
def test_equals_scikit_learn_within_half_a_point(digits, normalization):
    train, test = digits
    scale = SCALERS[normalization]
    judge = LogisticRegression(max_iter=5000).fit(scale(train.vectors, train.vectors), train.labels)
    expected = judge.score(scale(train.vectors, test.vectors), test.labels)
    result = cached_accuracy(train, test, 10, CachedRecipe(normalize_features=normalization), QUIET)
    assert result["top1"] == pytest.approx(expected, abs=0.005)
    assert result["examples"] == 897
    assert expected > 0.9


def test_the_learning_rate_is_chosen_without_the_test_split(digits):
    train, test = digits
    recipe = CachedRecipe(epochs=3)
    result = cached_accuracy(train, test, 10, recipe, QUIET)
    wrong = Features(test.vectors, (test.labels + 1) % 10)
    blind = cached_accuracy(train, wrong, 10, recipe, QUIET)
    assert blind["held_out_top1"] == result["held_out_top1"]
    assert blind["learning_rate"] == result["learning_rate"]
    assert blind["top1"] < 0.1 < result["top1"]
    assert len(set(result["held_out_top1"].values())) > 1
    best = max(result["held_out_top1"].values())
    assert result["held_out_top1"][f"{result['learning_rate']:.4g}"] == best


def test_nothing_to_learn_from(digits):
    train, test = digits
    for vectors in (np.zeros_like(train.vectors), np.full_like(train.vectors, np.nan)):
        with pytest.raises(UserError, match="there is nothing to learn from"):
            cached_accuracy(Features(vectors, train.labels), test, 10, CachedRecipe(), QUIET)
    one_each = Features(train.vectors[:3], np.arange(3, dtype=np.int32))
    with pytest.raises(UserError, match="none can be held out"):
        cached_accuracy(one_each, test, 10, CachedRecipe(), QUIET)


@pytest.mark.parametrize(("batch_size", "micro_batch"), [(50, 1), (256, 4), (2048, 32)])
def test_record_files_are_read_in_a_bounded_number_of_streams(monkeypatch, batch_size, micro_batch):
    asked = {}
    nothing = tf.data.Dataset.from_tensors((tf.zeros([1, 1, 8, 8, 3]), tf.zeros([1], tf.int32)))
    monkeypatch.setattr(pipeline, "training_batches", lambda source, **options: asked.update(options) or nothing)
    linear.labelled_batches(None, LinearRecipe(), 8, np.zeros([2], np.int32), batch_size, 1, 1.0)
    assert asked["micro_batch"] == micro_batch
