"""Encoding in groups against one group at a time, written down plainly."""

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.encoder import bn_groups, networks
from instcls_tf.encoder.bn_groups import Groups
from tests.reference import relative_error

GROUP = 4
ONE, AGAIN, KEPT = Groups(several=False), Groups(several=True), Groups(several=True, kept=True)


def make_encoder() -> tf.keras.Model:
    """A little network with BN, far enough from its initial state that nothing is 0 or 1 by chance."""
    images = tf.keras.Input([4, 4, 3])
    x = tf.keras.layers.Conv2D(6, 3, kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.5, seed=1))(images)
    x = tf.keras.layers.BatchNormalization(momentum=0.9)(x)
    x = tf.keras.layers.Flatten()(tf.nn.relu(x))
    dense = tf.keras.layers.Dense(5, kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.5, seed=2))
    return tf.keras.Model(images, dense(x))


def images(rows: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(3).normal(size=[rows, 4, 4, 3]) * 2 + 1, tf.float32)


def plain(rows: int, is_real: np.ndarray):
    """Embeddings, gradients of `sum(embeddings ** 3)` over real rows, and moving statistics: by real rows, one step."""
    encoder = make_encoder()
    statistics = networks.batch_norm_statistics(encoder)
    before, after, counts = [v.numpy() for v in statistics], [], []
    embeddings, gradients = [], None
    for begin in range(0, rows, GROUP):
        with tf.GradientTape() as tape:
            group = encoder(images(rows)[begin : begin + GROUP], training=True)
            loss = tf.reduce_sum(group[is_real[begin : begin + GROUP]] ** 3)
        parts = tape.gradient(loss, encoder.trainable_variables)
        gradients = parts if gradients is None else [a + b for a, b in zip(gradients, parts)]
        embeddings.append(group)
        after.append([v.numpy() for v in statistics])
        counts.append(is_real[begin : begin + GROUP].sum())
        for variable, value in zip(statistics, before):
            variable.assign(value)
    moved = [np.average(values, axis=0, weights=counts) for values in zip(*after)]
    return np.concatenate(embeddings), gradients, moved


@pytest.mark.parametrize(
    ("rows", "padding", "groups"),
    [(4, 0, ONE), (3, 1, ONE)]
    + [(*case, groups) for case in [(4, 0), (12, 0), (10, 0), (10, 2), (9, 3)] for groups in (AGAIN, KEPT)],
)
def test_equals_one_group_at_a_time(rows, padding, groups):
    is_real = np.arange(rows) < rows - padding
    encoder = make_encoder()

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 3]), tf.TensorSpec([None], tf.bool)])
    def step(x, real):
        encoded = bn_groups.encode(encoder, x, real, GROUP, groups)
        gradient = 3 * encoded.embeddings**2 * tf.cast(real, tf.float32)[:, tf.newaxis]
        gradients = encoded.backpropagate(gradient)
        with tf.control_dependencies(gradients):
            untouched = [variable.read_value() for variable in networks.batch_norm_statistics(encoder)]
        encoded.update_statistics()
        return encoded.embeddings, gradients, untouched

    before = [variable.numpy() for variable in networks.batch_norm_statistics(encoder)]
    embeddings, gradients, untouched = step(images(rows), tf.constant(is_real))
    for value, expected in zip(untouched, before):
        np.testing.assert_array_equal(value, expected)
    expected, expected_gradients, statistics = plain(rows, is_real)
    assert relative_error(embeddings, expected) < 1e-5
    for actual, wanted in zip(gradients, expected_gradients):
        scale = np.abs(expected_gradients[0]).max()  # a bias before BN has no gradient but rounding
        np.testing.assert_allclose(actual, wanted, atol=1e-5 * scale)
    for variable, wanted in zip(networks.batch_norm_statistics(encoder), statistics):
        np.testing.assert_allclose(variable, wanted, rtol=1e-5)


@pytest.mark.parametrize("rows", [4, 12, 18])
def test_encoding_again_gives_the_same_bits(rows):
    """Gradients, embeddings and moving statistics of one to five groups; the last of 18 rows is smaller."""
    results = []
    for groups in (AGAIN, KEPT):
        encoder = make_encoder()

        @tf.function
        def step(x, encoder=encoder, groups=groups):
            encoded = bn_groups.encode(encoder, x, tf.fill([rows], True), GROUP, groups)
            encoded.update_statistics()  # which the gradients need not wait for
            return encoded.embeddings, *encoded.backpropagate(3 * encoded.embeddings**2)

        results.append([*step(images(rows)), *networks.batch_norm_statistics(encoder)])
    for again, kept in zip(*results):
        np.testing.assert_array_equal(again, kept)


def test_groups_do_not_see_each_other():
    encoder, x = make_encoder(), images(8).numpy()
    is_real = tf.fill([8], True)
    first = bn_groups.encode(encoder, tf.constant(x), is_real, GROUP, AGAIN).embeddings
    x[5] += 10.0
    second = bn_groups.encode(encoder, tf.constant(x), is_real, GROUP, AGAIN).embeddings
    np.testing.assert_array_equal(first[:4], second[:4])
    assert relative_error(second[6:], first[6:]) > 1e-2


@pytest.mark.parametrize(("rows", "padding", "groups"), [(1, 0, ONE), (3, 1, ONE), (6, 0, AGAIN), (6, 1, KEPT)])
def test_a_smaller_batch_takes_a_part_of_a_step(rows, padding, groups):
    """The last batch of an epoch may be a single image: it must not count like the twelve of a full batch."""
    is_real = np.arange(rows) < rows - padding
    encoder, full = make_encoder(), 12
    before = [v.numpy() for v in networks.batch_norm_statistics(encoder)]
    in_batch = groups._replace(in_batch=full / GROUP)
    bn_groups.encode(encoder, images(rows), tf.constant(is_real), GROUP, in_batch).update_statistics()
    _, _, whole_steps = plain(rows, is_real)
    for variable, old, whole in zip(networks.batch_norm_statistics(encoder), before, whole_steps):
        np.testing.assert_allclose(variable, old + is_real.sum() / full * (whole - old), rtol=1e-5)


@pytest.mark.parametrize("groups", [AGAIN, KEPT])
def test_a_full_batch_takes_a_whole_step(groups):
    results = []
    for in_batch in (None, 3):
        encoder = make_encoder()
        settings = groups._replace(in_batch=in_batch)
        bn_groups.encode(encoder, images(12), tf.fill([12], True), GROUP, settings).update_statistics()
        results.append(networks.batch_norm_statistics(encoder))
    for first, second in zip(*results):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("in_batch", [None, 3])
@pytest.mark.parametrize("groups", [ONE, AGAIN, KEPT])
def test_a_batch_of_bad_images_moves_nothing(groups, in_batch):
    encoder, groups = make_encoder(), groups._replace(in_batch=in_batch)
    before = [v.numpy() for v in networks.batch_norm_statistics(encoder)]
    encoded = bn_groups.encode(encoder, images(1), tf.constant([False]), GROUP, groups)
    gradients = encoded.backpropagate(tf.zeros_like(encoded.embeddings))
    encoded.update_statistics()
    assert all((g.numpy() == 0).all() for g in gradients)
    for value, variable in zip(before, networks.batch_norm_statistics(encoder)):
        np.testing.assert_array_equal(variable, value)
