"""A network that no prior has shown an image is judged with statistics of images, and trains from those that it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.sources import open_source
from instcls_tf.encoder.networks import batch_norm_layers, make_encoder
from instcls_tf.evaluation import online_gauge, unseen
from instcls_tf.initial.start import keep_starting_weights
from instcls_tf.pretraining import starting
from instcls_tf.pretraining.starting import make_gauge
from instcls_tf.progress import Progress
from tests.images import write_images
from tests.recipes import WITHOUT_PRIOR


@pytest.fixture
def config(tmp_path) -> PretrainConfig:
    write_images(tmp_path / "images", [f"{index}.jpg" for index in range(20)])
    (tmp_path / "images" / "torn.png").write_bytes(b"torn")
    return WITHOUT_PRIOR.replace(dataset=f"folder:{tmp_path / 'images'}", workdir=str(tmp_path / "run"))


def inputs_of_first(encoder: tf.keras.Model, images: np.ndarray) -> np.ndarray:
    """What the first BN layer sees, `[b, H, W, C]`."""
    backbone = encoder.get_layer("backbone")
    first = batch_norm_layers(encoder)[0]
    return tf.keras.Model(backbone.input, first.input)(images, training=False).numpy()


@pytest.mark.parametrize("group", [64, 9])
def test_statistics_are_the_mean_of_those_of_groups(config, monkeypatch, group):
    """Of 20 images, in one group or in three; the one that cannot be read counts nowhere."""
    monkeypatch.setattr(unseen, "_GROUP", group)
    encoder, source = make_encoder(config), open_source(config.dataset)
    before = [variable.numpy() for variable in encoder.trainable_variables]
    assert unseen.has_seen_nothing(encoder)
    unseen.fill_statistics(encoder, config, source)
    assert not unseen.has_seen_nothing(encoder)
    batches = pipeline.inference_batches(
        source, image_size=16, batch_size=min(group, 21), micro_batch=min(group, 21), shuffle_seed=config.seed
    )
    groups = [inputs_of_first(encoder, images[ids >= 0].numpy()) for images, ids, _ in batches]
    assert sum(map(len, groups)) == 20
    first = batch_norm_layers(encoder)[0]
    means = np.mean([group.mean(axis=(0, 1, 2)) for group in groups], axis=0)
    variances = np.mean([group.var(axis=(0, 1, 2), ddof=1) for group in groups], axis=0)
    np.testing.assert_allclose(first.moving_mean, means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.moving_variance, variances, rtol=1e-4)
    assert {layer.momentum for layer in batch_norm_layers(encoder)} == {0.9}
    for variable, value in zip(encoder.trainable_variables, before):
        np.testing.assert_array_equal(variable, value)
    filled = first.moving_mean.numpy()
    unseen.fill_statistics(encoder, config, source)  # it has seen images
    np.testing.assert_array_equal(first.moving_mean, filled)


def test_a_run_is_held_against_its_start_as_if_that_had_seen_images(config):
    """With the same random weights all starts read alike, and the run goes on from its own statistics."""
    encoder, source = make_encoder(config), open_source(config.dataset)
    drawn = encoder.get_weights()
    begun = make_gauge(config, encoder, source, Progress(visible=False), begins=True)
    for weight, value in zip(encoder.get_weights(), drawn):
        np.testing.assert_array_equal(weight, value)
    unseen.fill_statistics(encoder, config, source)
    seen = make_gauge(config, encoder, source, Progress(visible=False), begins=True).measure()
    found = begun.measure()
    assert found["rank_me"] == seen["rank_me"] == pytest.approx(found["rank_me_start"])
    assert found["gauge_agreement_start"] == seen["gauge_agreement_start"] == seen["gauge_agreement"]


def test_a_run_that_goes_on_without_a_logged_start_is_held_against_it_likewise(config):
    """By the weights that it has kept."""
    encoder, source = make_encoder(config), open_source(config.dataset)
    Path(config.workdir).mkdir()
    keep_starting_weights(config.workdir, encoder)
    begun, later = (make_gauge(config, encoder, source, Progress(visible=False), begins) for begins in (True, False))
    assert later.measure()["rank_me_start"] == pytest.approx(begun.measure()["rank_me_start"], rel=1e-5)
    assert later.measure()["rank_me_start"] != pytest.approx(later.measure()["rank_me"], rel=1e-3)


def test_a_run_is_not_called_worse_while_its_own_statistics_are_hardly_of_images(config, monkeypatch):
    """Of steps of 20 images: the warning may come at the end of the third epoch."""
    monkeypatch.setattr(online_gauge, "if_worse", lambda now, start: "worse")
    monkeypatch.setattr(starting, "_SETTLED", 2)
    said = []
    monkeypatch.setattr(Progress, "say", lambda self, message: said.append(message))
    gauge = make_gauge(config, make_encoder(config), open_source(config.dataset), Progress(visible=False), begins=True)
    told = [gauge.measure() and list(said) for _ in range(4)]
    assert told == [[], [], ["worse"], ["worse"]]
