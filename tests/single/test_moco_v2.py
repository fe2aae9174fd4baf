"""MoCo v2 on one worker: the loss against float64, the queue, the key encoder and its shuffled BN groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.output import moved
from instcls_tf.encoder import networks
from instcls_tf.methods.moco_v2 import MoCoV2
from tests import method_references as reference
from tests.reference import normalize, relative_error

SIZE, QUEUE = 6, 11


def make_encoder(seed: int) -> tf.keras.Model:
    """A linear map between a BN and the embedding."""
    images = tf.keras.Input([2, 2, 3])
    initializer = tf.keras.initializers.RandomNormal(stddev=0.4, seed=seed)
    x = tf.keras.layers.Dense(8, kernel_initializer=initializer)(tf.keras.layers.Flatten()(images))
    x = tf.nn.relu(tf.keras.layers.BatchNormalization()(x))
    return tf.keras.Model(images, tf.keras.layers.Dense(SIZE, kernel_initializer=initializer)(x))


def make_moco(**changes) -> MoCoV2:
    return MoCoV2(make_encoder(1), make_encoder(2), **{"queue_size": QUEUE, **changes})


def directions(rows: int, seed: int) -> np.ndarray:
    return normalize(np.random.default_rng(seed).normal(size=[rows, SIZE])).astype(np.float32)


def enqueue(moco: MoCoV2, keys: np.ndarray) -> None:
    """What a step does to the queue."""
    moved(*moco.prepare(tf.constant(keys), tf.constant(keys)))


@pytest.mark.parametrize("temperature", [0.2, 0.02])
def test_equals_info_nce(temperature):
    moco = make_moco(temperature=temperature)
    keys = directions(5, 0)
    queries = ((keys + 0.4 * directions(5, 1)) * np.linspace(0.3, 4, 5)[:, None]).astype(np.float32)
    x = tf.constant(queries)
    with tf.GradientTape() as tape:
        tape.watch(x)
        output, _ = moco.prepare(x, tf.constant(keys))
        loss = 3.0 * output.loss
    queue = moco.queue.numpy()
    tolerance = 1e-5 if temperature > 0.1 else 2e-4
    assert relative_error(output.loss, reference.info_nce(queries, keys, queue, temperature)) < tolerance
    expected = reference.numerical_gradient(lambda x: 3 * reference.info_nce(x, keys, queue, temperature), queries)
    assert relative_error(tape.gradient(loss, x), expected) < tolerance
    hits = np.sum(normalize(queries) * keys, axis=1) > np.max(normalize(queries) @ queue.T, axis=1)
    assert output.instance_top1.numpy() == pytest.approx(hits.mean()) and hits.mean() > 0


def test_the_queue_replaces_the_oldest_keys_and_goes_round():
    moco = make_moco()
    np.testing.assert_allclose(np.linalg.norm(moco.queue, axis=1), 1, rtol=1e-5)
    slots = moco.queue.numpy()
    end = 0
    for step, rows in enumerate([4, 5, 0, 6, 11]):
        keys = directions(rows, step)
        enqueue(moco, keys)
        for key in keys:
            slots[end % QUEUE] = key
            end += 1
        np.testing.assert_array_equal(moco.queue, slots)
    assert end > 2 * QUEUE


def test_of_a_batch_larger_than_the_queue_the_last_keys_stay():
    moco = make_moco()
    keys = directions(QUEUE + 4, 0)
    enqueue(moco, keys)
    assert {key.tobytes() for key in moco.queue.numpy()} == {key.tobytes() for key in keys[4:]}


def test_the_key_encoder_starts_as_the_encoder_and_follows_it_slowly():
    moco = make_moco(momentum=0.9)
    before = [variable.numpy() for variable in moco.key_encoder.trainable_variables]
    for mine, theirs in zip(before, moco.encoder.trainable_variables):
        np.testing.assert_array_equal(mine, theirs)
        theirs.assign_add(tf.ones_like(theirs))
    moco.update_key_encoder()
    for mine, old in zip(moco.key_encoder.trainable_variables, before):
        np.testing.assert_allclose(mine, old + 0.1, rtol=1e-5, atol=1e-6)


def images(number: int = 6) -> tf.Tensor:
    return tf.random.stateless_uniform([number, 2, 2, 3], [5, 5], 0, 255)


def test_keys_come_back_in_the_order_of_the_images():
    moco = make_moco()
    expected = tf.math.l2_normalize(moco.key_encoder(images(), training=True), axis=1)
    np.testing.assert_allclose(moco.encode_keys(images(), 6, step=3), expected, rtol=1e-4, atol=1e-5)


def test_bn_groups_of_keys_are_shuffled_for_every_step():
    """With two groups of three images the keys are those of one of the ten ways to share out six images."""
    moco = make_moco()
    ways = {}
    for first in itertools.combinations(range(6), 3):
        if 0 in first:
            order = [*first, *(place for place in range(6) if place not in first)]
            groups = tf.split(tf.gather(images(), order), 2)
            keys = tf.concat([moco.key_encoder(group, training=True) for group in groups], axis=0)
            ways[first] = normalize(tf.gather(keys, np.argsort(order)).numpy())
    seen = set()
    for step in range(12):
        keys = moco.encode_keys(images(), 3, step)
        fits = [first for first, expected in ways.items() if np.allclose(keys, expected, rtol=1e-4, atol=1e-4)]
        assert len(fits) == 1
        seen.update(fits)
        np.testing.assert_array_equal(keys, moco.encode_keys(images(), 3, step))
    assert len(seen) > 3


def test_encoding_keys_leaves_moving_statistics_and_gradients_alone():
    moco = make_moco()
    before = [variable.numpy() for variable in networks.batch_norm_statistics(moco.key_encoder)]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(moco.encode_keys(images(), 3, 0))
    assert all(part is None for part in tape.gradient(total, moco.key_encoder.trainable_variables))
    for variable, value in zip(networks.batch_norm_statistics(moco.key_encoder), before):
        np.testing.assert_array_equal(variable, value)


def test_a_checkpoint_keeps_queue_place_and_key_encoder(tmp_path):
    moco = make_moco()
    enqueue(moco, directions(4, 0))
    prefix = tf.train.Checkpoint(**moco.replicated()).write(str(tmp_path / "moco"))
    other = MoCoV2(make_encoder(3), make_encoder(4), queue_size=QUEUE, seed=9)
    tf.train.Checkpoint(**other.replicated()).read(prefix).assert_consumed()
    np.testing.assert_array_equal(other.queue, moco.queue)
    assert other.queue_end.numpy() == 4
    np.testing.assert_array_equal(other.key_encoder.variables[0], moco.key_encoder.variables[0])
