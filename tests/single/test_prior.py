"""The contrastive prior against a plain loop over the same batches, with BN moments from NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.prior import _update_moving, initialize_classifier
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.bad_files import BadFiles
from instcls_tf.data.decoding import BadImages
from instcls_tf.data.sources import DigitsSource, open_source
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from tests import reference
from tests.reference import relative_error

NUM_INSTANCES = 72
CONFIG = PretrainConfig(
    dataset="digits", image_size=16, encoder="resnet10", width_multiplier=0.125, stem="small", embedding_size=16,
    batch_size=24, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def source() -> DigitsSource:
    digits = open_source("digits")
    return dataclasses.replace(digits, images=digits.images[:NUM_INSTANCES], labels=digits.labels[:NUM_INSTANCES])


def make_encoder() -> tf.keras.Model:
    return networks.build_encoder(
        encoder=CONFIG.encoder,
        width_multiplier=CONFIG.width_multiplier,
        stem=CONFIG.stem,
        embedding_size=CONFIG.embedding_size,
        seed=CONFIG.seed,
    )


def fill(source, progress=None, **changes) -> tuple[np.ndarray, tf.keras.Model]:
    """The class weights `[N, D]` of an initialisation and the encoder that it leaves."""
    encoder, layer = make_encoder(), ShardedClassifier(source.num_instances, CONFIG.embedding_size, seed=CONFIG.seed)
    before = [variable.numpy() for variable in encoder.trainable_variables]
    arguments = [] if progress is None else [progress]
    initialize_classifier(CONFIG.replace(**changes), layer, encoder, source, *arguments)
    for variable, value in zip(encoder.trainable_variables, before):
        np.testing.assert_array_equal(variable, value)  # everything but BN is fixed
    return layer.local_weights.numpy(), encoder


def batches(source, epoch: int = 0, batch_size: int = CONFIG.batch_size) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and ids of the pass of that number, in the order of the initialisation."""
    dataset = pipeline.inference_batches(
        source, image_size=CONFIG.image_size, batch_size=batch_size, shuffle_seed=CONFIG.seed + epoch
    )
    return [(images, ids) for images, ids, _ in dataset.as_numpy_iterator()]


def plain_running_bn(source, burn_in: int, batch_size: int) -> tuple[np.ndarray, tf.keras.Model]:
    """Embed with the statistics of previous iterations, then let this iteration's moments into the running average.

    A smaller last batch takes as large a part of a step as it is of a full one.
    """
    encoder, weights = make_encoder(), np.zeros([source.num_instances, CONFIG.embedding_size])
    probe = networks.batch_norm_probe(encoder)
    for epoch in range(burn_in + 1):
        for images, ids in batches(source, epoch, batch_size):
            step = 0.1 * len(ids) / batch_size
            weights[ids] = reference.normalize(encoder(images, training=False).numpy())
            _, inputs = probe(images, training=False)
            for layer, x in zip(networks.batch_norm_layers(encoder), inputs):
                x = x.numpy().astype(np.float64)
                mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
                layer.moving_mean.assign((1 - step) * layer.moving_mean + step * mean)
                layer.moving_variance.assign((1 - step) * layer.moving_variance + step * variance)
    return weights, encoder


@pytest.fixture(scope="module")
def without_burn_in(source) -> tuple[np.ndarray, tf.keras.Model]:
    return fill(source, classifier_init="raw_running_bn", bn_burn_in=0)


@pytest.mark.parametrize(("burn_in", "batch_size"), [(0, 24), (1, 24), (1, 34)])  # 34, 34, 4
def test_running_bn_equals_a_plain_loop(source, without_burn_in, burn_in, batch_size):
    expected, plain = plain_running_bn(source, burn_in, batch_size)
    changes = {"classifier_init": "raw_running_bn", "bn_burn_in": burn_in, "batch_size": batch_size}
    weights, encoder = fill(source, **changes) if burn_in else without_burn_in
    assert relative_error(weights, expected) < 1e-4
    statistics = (np.concatenate(networks.batch_norm_statistics(model), axis=0) for model in (encoder, plain))
    assert relative_error(*statistics) < 1e-4
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), 1, rtol=1e-5)  # every class got its weight


def test_first_weights_are_taken_under_the_initial_statistics(source, without_burn_in):
    encoder = make_encoder()  # means 0, variances 1
    weights, _ = without_burn_in
    (images, ids), (later_images, later_ids), *_ = batches(source)
    assert relative_error(weights[ids], reference.normalize(encoder(images, training=False).numpy())) < 1e-5
    initial = reference.normalize(encoder(later_images, training=False).numpy())
    assert relative_error(weights[later_ids], initial) > 1e-2


def test_a_batch_does_not_see_its_own_statistics(source, without_burn_in):
    """Another picture in the second batch: no other weight of that batch changes, but the third batch's do."""
    weights, _ = without_burn_in
    (_, first), (_, second), (_, third) = batches(source)
    images = source.images.copy()
    images[second[4]] = 255 - images[second[4]]
    changed, _ = fill(dataclasses.replace(source, images=images), classifier_init="raw_running_bn", bn_burn_in=0)
    same = np.concatenate([first, np.delete(second, 4)])
    np.testing.assert_allclose(changed[same], weights[same], atol=1e-6)
    assert relative_error(changed[third], weights[third]) > 1e-3
    assert relative_error(changed[second[4]], weights[second[4]]) > 1e-3


def test_fixed_bn_leaves_the_initial_statistics(source):
    weights, encoder = fill(source, classifier_init="raw_fixed_bn")
    for layer in networks.batch_norm_layers(encoder):
        np.testing.assert_array_equal(layer.moving_mean, np.zeros(layer.moving_mean.shape))
        np.testing.assert_array_equal(layer.moving_variance, np.ones(layer.moving_variance.shape))
    for images, ids in batches(source):
        expected = reference.normalize(make_encoder()(images, training=False).numpy())
        assert relative_error(weights[ids], expected) < 1e-5


@pytest.mark.parametrize("group", [24, 10])  # 10, 10, 4
def test_batch_bn_normalises_with_the_batch(source, group):
    """Each group of it by itself."""
    weights, _ = fill(source, classifier_init="raw_batch_bn", micro_batch=group)
    encoder = make_encoder()
    for images, ids in batches(source):
        for begin in range(0, len(ids), group):
            one = slice(begin, begin + group)
            expected = reference.normalize(encoder(images[one], training=True).numpy())
            assert relative_error(weights[ids[one]], expected) < 1e-4


def test_random_is_gaussian_and_leaves_the_encoder(source):
    weights, encoder = fill(source, classifier_init="random")
    layer = ShardedClassifier(NUM_INSTANCES, CONFIG.embedding_size, seed=CONFIG.seed)
    layer.initialize_gaussian()
    np.testing.assert_array_equal(weights, layer.local_weights)
    for variable, other in zip(encoder.variables, make_encoder().variables):
        np.testing.assert_array_equal(variable, other)


def test_progress_names_the_stage(source):
    reports = []
    fill(source, progress=lambda *report: reports.append(report), classifier_init="raw_fixed_bn", bn_burn_in=1)
    assert reports == [("contrastive prior", done, 3) for done in (1, 2, 3)]  # a burn-in only if BN runs


def test_the_images_are_checked_after_each_pass(source, tmp_path):
    """A source that loses images during the burn-in is refused at its end."""
    encoder, layer = make_encoder(), ShardedClassifier(source.num_instances, CONFIG.embedding_size)
    spoilt = dataclasses.replace(source, bad=BadImages())
    stages = []

    def spoil(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        spoilt.bad.add(f"{done}.png", "not an image")

    with pytest.raises(UserError, match="3 of 72 images cannot be read"):
        initialize_classifier(CONFIG, layer, encoder, spoilt, spoil, BadFiles(str(tmp_path), spoilt, 0.0))
    assert stages == ["BN burn-in"] * 3


def test_a_batch_of_bad_images_moves_no_statistics():
    layer = tf.keras.layers.BatchNormalization()
    layer.build([None, 3])
    _update_moving(layer, tf.zeros([3]), tf.zeros([3]), tf.constant(0.0))
    np.testing.assert_array_equal(layer.moving_variance, [1, 1, 1])
