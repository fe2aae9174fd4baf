"""Lists that grow block by block, with groups of candidates, against all similarities."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier import top_k
from instcls_tf.classifier.top_k import Block, Lists

NUM_CANDIDATES, SIZE = 1500, 8


def integer_rows() -> np.ndarray:
    """Similarities are exact: what `merge` adds up does not depend on the length of rows."""
    return np.random.default_rng(1).integers(-300, 301, [NUM_CANDIDATES, SIZE]).astype(np.float32)


def rows_with_ties() -> np.ndarray:
    """Sums of signed axes, 4 at a time: similarities are multiples of 1/4, exactly, and mostly shared by hundreds."""
    random = np.random.default_rng(2)
    signs = random.choice([-0.5, 0.5], [NUM_CANDIDATES, SIZE])
    return (signs * (np.argsort(random.random([NUM_CANDIDATES, SIZE])) < 4)).astype(np.float32)


def search(rows: np.ndarray, queries: np.ndarray, block: int, k: int) -> np.ndarray:
    layout = top_k.arrangement(block, k)
    lists = Lists(tf.fill([len(queries), k], -float("inf")), tf.fill([len(queries), k], -1))
    for first in range(0, len(rows), block):
        part = tf.constant(rows[first : first + block])
        columns = top_k.arrange(part, layout)
        assert columns.shape == [SIZE, layout.width]
        candidates = Block(columns, tf.constant(first), tf.constant(first + len(part)))
        lists = top_k.merge(lists, tf.constant(rows[queries]), tf.constant(queries, tf.int32), candidates, layout)
    return lists.ids.numpy()


@pytest.mark.parametrize("make_rows", [integer_rows, rows_with_ties])
@pytest.mark.parametrize(
    ("block", "k", "group", "groups_together"),
    [
        (1500, 2, 16, 4),  # the largest groups, the last ones not full
        (1500, 9, 16, 2),
        (1024, 3, 16, 4),  # full, and a smaller block at the end
        (601, 20, 7, 1),
        (500, 200, 1, 1),  # no groups
        (70, 100, 1, 1),  # blocks smaller than K
        (1500, 1499, 1, 1),  # everybody but oneself
    ],
)
def test_equals_the_sorted_similarities(make_rows, block, k, group, groups_together):
    rows = make_rows()
    layout = top_k.arrangement(block, k)
    assert (layout.group, layout.groups_together) == (group, groups_together)
    queries = np.array([0, 1, 15, 16, 63, 64, 700, 1023, 1024, 1498, 1499])
    similarities = rows[queries].astype(np.float64) @ rows.T.astype(np.float64)
    similarities[np.arange(len(queries)), queries] = -np.inf
    expected = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(search(rows, queries, block, k), expected)


@pytest.mark.parametrize(("count", "k"), [(1497, 3), (1497, 9), (1500, 3), (601, 20)])
def test_copies_that_fill_up_count_for_nothing(count, k):
    """Not even where products are rounded otherwise in their columns, so that they pass for better than what they copy.

    The query and its list are of different groups; the last member is the last candidate, of which there are copies.
    """
    layout = top_k.arrangement(count, k)
    query, together = 1, layout.group * layout.groups_together
    rows = np.zeros([count, SIZE], np.float32)
    rows[query + together * np.arange(k), 0] = np.arange(k + 1, 1, -1)
    rows[-1, 0] = 1
    columns = top_k.arrange(tf.constant(rows), layout).numpy()
    places = np.arange(layout.group)[:, np.newaxis] + layout.group * np.arange(layout.num_groups)
    copies = places.ravel() >= count
    assert copies.any()
    columns[:, copies] *= 1 + 1e-6
    lists = Lists(tf.fill([1, k], -float("inf")), tf.fill([1, k], -1))
    block = Block(tf.constant(columns), tf.constant(0), tf.constant(count))
    found = top_k.merge(lists, tf.constant(rows[[query]]), tf.constant([query]), block, layout).ids
    np.testing.assert_array_equal(found, [[*(query + together * np.arange(1, k)), count - 1]])


def test_the_best_may_share_a_group():
    """The K best stand side by side, one of them the query itself, all in one group."""
    rows = np.tile(np.eye(SIZE, dtype=np.float32)[:1], [NUM_CANDIDATES, 1])
    rows[160:164] = np.eye(SIZE)[1]
    np.testing.assert_array_equal(search(rows, np.array([161]), NUM_CANDIDATES, 3), [[160, 162, 163]])
