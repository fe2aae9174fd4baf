"""The even split: nothing lost, nothing twice, the larger parts first, the same on tensors as on integers."""

import pytest
import tensorflow as tf

from instcls_tf.distributed.partition import bounds


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [0, 1, 2, 6, 7, 8, 101])
def test_parts_join_and_differ_by_one_at_most(total, parts):
    split = [bounds(total, parts, index) for index in range(parts)]
    assert [i for begin, end in split for i in range(begin, end)] == list(range(total))
    sizes = [end - begin for begin, end in split]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_larger_parts_come_first():
    assert [bounds(11, 4, index) for index in range(4)] == [(0, 3), (3, 6), (6, 9), (9, 11)]
    assert [bounds(2, 3, index) for index in range(3)] == [(0, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_a_tensor_of_totals_gives_the_same_bounds(dtype):
    for total in (0, 5, 6, 101):
        for index in range(3):
            assert tuple(int(x) for x in bounds(tf.constant(total, dtype), 3, index)) == bounds(total, 3, index)


def test_a_tensor_of_indices_gives_the_same_bounds():
    for index in range(3):
        assert tuple(int(x) for x in bounds(101, 3, tf.constant(index))) == bounds(101, 3, index)
