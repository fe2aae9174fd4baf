"""PIC's order of images: windows of one list, each in an order of its own."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.data.permutation import permute
from instcls_tf.data.sliding_window import sliding_window_ids

N, WINDOW, STRIDE, SEED = 50, 20, 5, 3


def ids_of(number: int, **changes) -> np.ndarray:
    settings = {"num_instances": N, "window": WINDOW, "stride": STRIDE, **changes}
    places = tf.range(settings["window"], dtype=tf.int64)
    return sliding_window_ids(places, SEED, number, **settings).numpy()


def test_a_window_holds_consecutive_instances_of_one_random_list():
    listed = permute(tf.range(N, dtype=tf.int64), SEED, 0, N).numpy()
    assert sorted(listed) == list(range(N)) and list(listed) != list(range(N))
    for number in range(25):
        expected = np.take(listed, np.arange(WINDOW) + number * STRIDE, mode="wrap")
        assert sorted(ids_of(number)) == sorted(expected)


def test_every_window_has_an_order_of_its_own():
    listed = permute(tf.range(N, dtype=tf.int64), SEED, 0, N).numpy().tolist()
    orders = {tuple((listed.index(i) - number * STRIDE) % N for i in ids_of(number)) for number in range(10)}
    assert len(orders) == 10 and tuple(range(WINDOW)) not in orders


def test_an_instance_is_in_consecutive_windows_and_all_are_visited_as_often():
    windows = [set(ids_of(number)) for number in range(N // STRIDE)]
    visits = np.array([[i in window for window in windows] for i in range(N)])
    np.testing.assert_array_equal(visits.sum(axis=1), WINDOW // STRIDE)
    # Around the circle each instance comes in once and leaves once.
    np.testing.assert_array_equal((visits & ~np.roll(visits, 1, axis=1)).sum(axis=1), 1)


def test_single_places_are_those_of_the_whole_window():
    some = sliding_window_ids(tf.constant([7, 0, 19], tf.int64), SEED, tf.constant(4), N, WINDOW, STRIDE)
    np.testing.assert_array_equal(some, ids_of(4)[[7, 0, 19]])


def test_a_window_over_everything_is_an_epoch():
    assert sorted(ids_of(2, window=N)) == list(range(N))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"window": 51}, "window=51: must be 1 to the number of instances, 50"),
        ({"window": 0}, "window=0: must be 1 to the number of instances, 50"),
        ({"stride": 0}, "stride=0: must be at least 1"),
    ],
)
def test_wrong_windows_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        ids_of(0, **changes)
