"""Rows of int8 with a scale each, by themselves; the classifier with them is in test_classifier.py."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier import int8_rows, stochastic_rounding
from instcls_tf.classifier.stochastic_rounding import Draw
from instcls_tf.classifier.table import Table


def scale_of(largest: float, before: float = 0.0) -> float:
    values = tf.constant([[0.0, -largest, largest / 2]])
    return float(int8_rows.next_scales(values, tf.constant([before]))[0])


@pytest.mark.parametrize("exponent", [-90, -7, 0, 30])
def test_a_new_row_gets_the_smallest_power_of_two(exponent):
    unit = 2.0**exponent
    for largest, scale in ((127, 1), (127.00001, 2), (63.5, 0.5), (63.50001, 1), (254, 2), (255, 4)):
        assert scale_of(largest * unit) == scale * unit


def test_a_scale_stays_while_it_fits():
    assert [scale_of(largest, 1.0) for largest in (127, 63, 48)] == [1.0] * 3
    assert (scale_of(127.00001, 1.0), scale_of(47.99999, 1.0), scale_of(5, 1.0)) == (2.0, 0.5, 0.0625)


def test_rows_of_nothing():
    scales = int8_rows.next_scales(tf.zeros([2, 3]), tf.constant([0.0, 1.0]))
    assert np.all(scales > 0) and np.isfinite(1 / scales.numpy()).all()
    assert not np.any(int8_rows.round_to_nearest(tf.zeros([2, 3]), scales))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(value):
    values = tf.constant([[1.0, value, 2.0], [1.0, 2.0, 3.0]], tf.float32)
    scales = int8_rows.next_scales(values, tf.ones([2]))
    assert np.isfinite(scales).tolist() == [False, True]


def test_half_the_scale_keeps_the_values():
    """A row whose largest number is below half of what int8 holds, to the last bit, whatever the random bits are."""
    numbers = tf.constant([np.arange(-40, 41)], tf.int8)
    values = int8_rows.values_of(numbers, tf.constant([0.25]))
    scales = int8_rows.next_scales(values, tf.constant([0.25]))
    assert scales.numpy() == [0.125]
    for random in (0, 2**32 - 1):
        halved = int8_rows.round_stochastically(values, scales, tf.fill(values.shape, tf.constant(random, tf.uint32)))
        np.testing.assert_array_equal(int8_rows.values_of(halved, scales), values)


def test_rounding_goes_to_a_neighbour_and_keeps_the_mean():
    """Of values all over the range, the smallest steps included, 4,000 rows each: within four standard deviations."""
    values = np.array([-126.9, -64.5, -1.0, -0.3, -1e-4, 0.0, 2.0**-13, 0.7, 3.0, 99.25, 126.999], np.float32)
    rows = tf.constant(np.tile(values, [40_000, 1]))
    draw = Draw(tf.range(40_000), tf.constant(3), stochastic_rounding.WEIGHTS)
    random = stochastic_rounding.random_bits(draw, len(values))
    rounded = int8_rows.round_stochastically(rows, tf.ones([40_000]), random).numpy().astype(np.float64)
    assert np.abs(rounded - values).max() < 1
    share = values.astype(np.float64) - np.floor(values)
    assert np.all(rounded[:, share == 0] == values[share == 0])
    deviation = np.sqrt(share * (1 - share) / len(rounded))
    np.testing.assert_array_less(np.abs(rounded.mean(axis=0) - values), 4 * deviation + 1e-7)


def test_what_was_read_is_written_without_loss():
    """Also where the scale had stayed twice as large as a new one."""
    table = Table(tf.Variable(tf.zeros([2, 5], tf.int8)), tf.Variable(tf.zeros([2])))
    table.values.assign(tf.constant([[1, -50, 3, 7, 2], [127, 0, -127, 1, -1]], tf.int8))
    table.scales.assign([0.5, 2.0**-9])
    before = table.read(tf.range(2)).numpy()
    table.write(tf.range(2), tf.constant(before))
    assert table.scales.numpy().tolist() == [0.25, 2.0**-9]
    np.testing.assert_array_equal(table.read(tf.range(2)), before)


def test_writing_rounds_to_the_nearest():
    values = tf.random.stateless_normal([300, 40], [1, 2])
    table = Table(tf.Variable(tf.zeros([300, 40], tf.int8)), tf.Variable(tf.zeros([300])))
    table.write(tf.range(300), values)
    wrong = np.abs(table.read(tf.range(300)) - values) / table.scales.numpy()[:, np.newaxis]
    assert 0.49 < wrong.max() <= 0.5
    assert np.abs(table.values.numpy().astype(int)).max(axis=1).min() >= 63
