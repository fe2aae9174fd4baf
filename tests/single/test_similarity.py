"""The intra- and inter-instance cosines with class weights made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import DigitsSource, open_source
from instcls_tf.encoder.networks import build_encoder
from instcls_tf.errors import UserError
from instcls_tf.evaluation import similarity
from instcls_tf.evaluation.similarity import gap_of_weights, measure_similarities, similarities_of_run
from instcls_tf.evaluation.weight_index import WeightNeighbours
from instcls_tf.initial.start import keep_starting_weights, starting_weights_path
from instcls_tf.report.similarity import draw_histograms, draw_index
from instcls_tf.run.workdir import run_flags_path
from tests import reference

NUM_INSTANCES, SIZE, GREY = 10, 6, 20
CONFIG = PretrainConfig(augmentation="none", image_size=8, batch_size=4)


@pytest.fixture(scope="module")
def source() -> DigitsSource:
    """Image i is uniformly grey 20 i."""
    greys = (GREY * np.arange(NUM_INSTANCES)).astype(np.uint8)[:, None, None, None]
    images = np.broadcast_to(greys, [NUM_INSTANCES, 8, 8, 3]).copy()
    return DigitsSource("greys", None, images, np.full(NUM_INSTANCES, -1, np.int32))


def vectors(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[NUM_INSTANCES, SIZE]).astype(np.float32)


class Lookup:
    """An encoder that knows the greys, and remembers how it was called."""

    layers = ()  # none that has statistics

    def __init__(self, table: np.ndarray):
        self.table, self.calls = tf.constant(table), []

    def __call__(self, images, training):
        self.calls.append((len(images), training))
        return tf.gather(self.table, tf.cast(images[:, 0, 0, 0], tf.int32) // GREY)


def test_equals_all_cosines(source):
    embeddings, weights = vectors(1), vectors(2) * 5
    cosines = reference.normalize(embeddings) @ reference.normalize(weights).T
    intra = np.trace(cosines) / NUM_INSTANCES
    inter = (cosines.sum() - np.trace(cosines)) / (NUM_INSTANCES * (NUM_INSTANCES - 1))
    encoder = Lookup(embeddings)
    measured = measure_similarities(CONFIG, source, encoder, weights, NUM_INSTANCES, training=False)
    assert measured.summary() == pytest.approx({"intra": intra, "inter": inter, "gap": intra - inter}, abs=1e-6)
    assert encoder.calls == [(8, False), (8, False), (4, False)]  # two views each
    np.testing.assert_allclose(np.sort(measured.intra), np.sort(np.repeat(np.diag(cosines), 2)), atol=1e-6)
    others = cosines[~np.eye(NUM_INSTANCES, dtype=bool)]
    assert len(measured.inter_sample) == 4 * 2 * NUM_INSTANCES
    assert all(np.abs(others - cosine).min() < 1e-5 for cosine in measured.inter_sample)


def test_weights_that_stay_with_their_workers_give_the_same_gap(source):
    embeddings, weights = vectors(1), vectors(2) * 5
    classifier = ShardedClassifier(NUM_INSTANCES, SIZE)
    classifier.write(tf.range(NUM_INSTANCES), tf.constant(weights))
    found = gap_of_weights(CONFIG, source, Lookup(embeddings), classifier, 8, training=False)
    wanted = measure_similarities(CONFIG, source, Lookup(embeddings), weights, 8, training=False)
    assert found == pytest.approx(wanted.summary(), abs=1e-6)


def test_views_are_embedded_in_groups_of_the_recipe(source):
    """Both views of at most so many instances at a time, whatever the batch: by them BN normalises in training."""
    encoder, weights = Lookup(vectors(1)), vectors(2)
    config = CONFIG.replace(batch_size=10, micro_batch=4)
    found = measure_similarities(config, source, encoder, weights, NUM_INSTANCES, training=True)
    assert encoder.calls == [(8, True), (8, True), (4, True)]
    wanted = measure_similarities(CONFIG, source, Lookup(vectors(1)), weights, NUM_INSTANCES, training=True)
    assert found.summary() == pytest.approx(wanted.summary(), abs=1e-6)


def test_measuring_leaves_the_encoder_as_it_was(source):
    """Keras moves the statistics of BN whenever it is called in training mode."""
    encoder = build_encoder(encoder="resnet18", width_multiplier=0.125, stem="small", embedding_size=SIZE)
    classifier = ShardedClassifier(NUM_INSTANCES, SIZE)
    classifier.write(tf.range(NUM_INSTANCES), tf.constant(vectors(2)))
    before = encoder.get_weights()
    gap_of_weights(CONFIG, source, encoder, classifier, NUM_INSTANCES, training=True)
    measure_similarities(CONFIG, source, encoder, vectors(2), NUM_INSTANCES, training=True)
    for now, then in zip(encoder.get_weights(), before):
        np.testing.assert_array_equal(now, then)


def test_class_weights_that_are_the_embeddings(source):
    table = np.eye(NUM_INSTANCES, dtype=np.float32)
    measured = measure_similarities(CONFIG, source, Lookup(table), table * 3, NUM_INSTANCES, training=True)
    assert measured.summary() == pytest.approx({"intra": 1.0, "inter": 0.0, "gap": 1.0}, abs=1e-6)


@pytest.mark.parametrize(("instances", "batches"), [(1, 1), (4, 1), (5, 2), (1000, 3)])
def test_measures_about_as_many_instances_as_asked(source, instances, batches):
    encoder = Lookup(vectors(1))
    measure_similarities(CONFIG, source, encoder, vectors(2), instances, training=True)
    assert len(encoder.calls) == batches
    assert all(training for _, training in encoder.calls)


def test_a_run_from_given_weights_is_compared_with_these(source, tmp_path):
    """Not with those of a random network, which it has never had."""
    recipe = {"encoder": "resnet18", "width_multiplier": 0.125, "stem": "small", "embedding_size": SIZE}
    given = build_encoder(**recipe)
    keep_starting_weights(str(tmp_path), given)
    config = CONFIG.replace(init=starting_weights_path(str(tmp_path)), classifier_init="raw_fixed_bn", **recipe)
    encoder, weights = similarity._initial_weights(config, source)
    for found, wanted in zip(encoder.trainable_variables, given.trainable_variables):
        np.testing.assert_array_equal(found, wanted)
    images = tf.constant(source.images)
    cosines = tf.reduce_sum(tf.math.l2_normalize(given(images), axis=1) * tf.math.l2_normalize(weights, axis=1), axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_histograms_are_a_picture(source, tmp_path):
    table = np.eye(NUM_INSTANCES, dtype=np.float32)  # cosines of 0 and 1 only
    measured = measure_similarities(CONFIG, source, Lookup(table), table, NUM_INSTANCES, training=False)
    draw_histograms(str(tmp_path / "x.png"), {"a": measured, "b": measured._replace(inter_sample=measured.intra)})
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_refuses_before_it_measures(tmp_path):
    with pytest.raises(UserError, match=r"^--instances=0: must be at least 1$"):
        similarities_of_run(str(tmp_path), None, 0)
    config = PretrainConfig(dataset="digits", encoder="resnet18", width_multiplier=0.125, stem="small")
    with open(run_flags_path(str(tmp_path)), "w") as file:
        file.write(config.as_flags())
    with pytest.raises(UserError, match=f"^--workdir={tmp_path}: the run has not saved a checkpoint yet$"):
        similarities_of_run(str(tmp_path), None, 10)


def test_a_bad_image_is_a_black_picture(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(tf.io.encode_png(np.full([4, 4, 3], 50 + index, np.uint8)).numpy())
    (tmp_path / "1.png").write_bytes(b"torn")
    index = WeightNeighbours(
        open_source(f"folder:{tmp_path}"), np.ones(3), np.array([1, 0, 0]), pairs=[(0, 1)], outliers=[2], step=5
    )
    draw_index(str(tmp_path / "drawn.png"), index)
    drawn = tf.io.decode_png((tmp_path / "drawn.png").read_bytes(), channels=3).numpy()
    areas = [np.all(drawn == grey, axis=-1).sum() for grey in (50, 0, 52)]
    assert areas[0] > 1000 and areas[2] == pytest.approx(areas[0], rel=0.1)
    assert areas[1] == pytest.approx(areas[0], rel=0.3)  # with the black of the letters
