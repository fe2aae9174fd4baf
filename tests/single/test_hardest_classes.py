"""The search for hard negatives and their lookup, for one worker, against all N x N similarities."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import hardest_classes, top_lists
from instcls_tf.classifier import ShardedClassifier
from instcls_tf.hardest_classes import HardNegatives, hard_negatives
from tests import reference

NUM_INSTANCES, SIZE = 41, 6


@pytest.fixture
def sizes(monkeypatch):
    """Sets the most candidates per block and about the queries per tile."""

    def set_sizes(candidates: int, queries: int) -> None:
        monkeypatch.setattr(hardest_classes, "_CANDIDATES", candidates)
        monkeypatch.setattr(hardest_classes, "_TILE_ELEMENTS", min(candidates, NUM_INSTANCES) * queries)

    return set_sizes


def weights() -> np.ndarray:
    random = np.random.default_rng(1)
    rows = random.normal(size=[NUM_INSTANCES, SIZE]) * random.uniform(0.1, 10.0, [NUM_INSTANCES, 1])
    return rows.astype(np.float32)


def make_classifier(rows: np.ndarray) -> ShardedClassifier:
    layer = ShardedClassifier(*rows.shape)
    layer.write(tf.range(len(rows)), tf.constant(rows, tf.float32))
    return layer


@pytest.mark.parametrize(
    ("candidates", "queries", "k"),
    [
        (32768, 1000, 5),  # one block, one tile
        (41, 41, 1),
        (40, 7, 5),  # two blocks, of 21 and 20
        (7, 1, 5),
        (3, 40, 5),  # blocks smaller than K
        (1, 3, 2),
        (14, 10, 40),  # K = N - 1: everybody but oneself
    ],
)
def test_equals_the_sorted_similarities(sizes, candidates, queries, k):
    sizes(candidates, queries)
    lists = hard_negatives(make_classifier(weights()), k)
    assert lists.dtype == tf.int32
    np.testing.assert_array_equal(lists, reference.hard_negatives(weights().astype(np.float64), k))


@pytest.mark.parametrize(("candidates", "queries"), [(32768, 1000), (7, 5), (2, 41)])
def test_ties_keep_the_order_of_ids_and_never_list_oneself(sizes, candidates, queries):
    """Axes as rows, each several times: similarities are 1 or 0, exactly."""
    sizes(candidates, queries)
    axis = np.arange(NUM_INSTANCES) % 4
    rows = np.eye(SIZE)[axis]
    lists = hard_negatives(make_classifier(rows), NUM_INSTANCES - 1).numpy()
    everyone = np.arange(NUM_INSTANCES)
    for i in everyone:
        same = [j for j in everyone if j != i and axis[j] == axis[i]]
        other = [j for j in everyone if axis[j] != axis[i]]
        np.testing.assert_array_equal(lists[i], same + other)


def test_rounding_does_not_depend_on_the_place_of_a_row():
    """Else equal classes would come in another order on another number of workers."""
    rows = tf.random.stateless_normal([1000, 37], [1, 2])
    normalized = tf.function(hardest_classes._normalized, input_signature=[tf.TensorSpec([None, 37])])
    whole = normalized(rows).numpy()
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, rtol=1e-6)
    for begin, end in [(0, 1), (0, 7), (3, 70), (501, 1000), (990, 999)]:
        np.testing.assert_array_equal(normalized(rows[begin:end]), whole[begin:end])


def test_follows_the_rows():
    layer = make_classifier(weights())
    before = hard_negatives(layer, 5).numpy()
    layer.write(tf.range(NUM_INSTANCES), tf.constant(weights()[::-1].copy()))
    np.testing.assert_array_equal(hard_negatives(layer, 5), NUM_INSTANCES - 1 - before[::-1])


@pytest.mark.parametrize("k", [0, NUM_INSTANCES, 1000])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k={k}: must be at least 1 and below the number of classes, 41"):
        hard_negatives(make_classifier(weights()), k)


def test_lookup():
    module = HardNegatives(make_classifier(weights()), 5)
    np.testing.assert_array_equal(module.lists, np.full([NUM_INSTANCES, 5], -1))
    module.refresh()
    expected = reference.hard_negatives(weights().astype(np.float64), 5)
    np.testing.assert_array_equal(module.lists, expected)
    ids = np.array([40, 0, 7, 7, 40], np.int32)
    lists = module.lookup(tf.constant(ids))
    assert lists.dtype == tf.int32
    np.testing.assert_array_equal(lists, expected[ids])
    assert module.lookup(tf.zeros([0], tf.int32)).shape == [0, 5]


def test_lists_are_as_old_as_the_last_refresh():
    module = HardNegatives(make_classifier(weights()), 5)
    module.refresh()
    before = module.lists.numpy()
    module.classifier.write(tf.range(NUM_INSTANCES), tf.constant(weights()[::-1].copy()))
    np.testing.assert_array_equal(module.lookup(tf.range(NUM_INSTANCES)), before)
    module.refresh()
    assert (module.lists.numpy() != before).any()


def test_churn_is_the_share_of_new_members():
    layer = make_classifier(weights())
    module = HardNegatives(layer, 5)
    first = module.refresh()
    assert first.churn is None
    assert set(first.metrics(epoch_seconds=1e9)) == {"hard_negative_seconds", "hard_negative_share"}
    assert module.refresh().churn == 0.0
    before = module.lists.numpy()
    layer.write(tf.range(20), tf.constant(weights()[20:40]))
    third = module.refresh()
    new = [len(set(members) - set(others)) / 5 for members, others in zip(module.lists.numpy(), before)]
    assert 0 < np.mean(new) < 1
    assert third.churn == pytest.approx(np.mean(new))
    assert third.metrics(epoch_seconds=2 * third.seconds) == {
        "hard_negative_seconds": third.seconds,
        "hard_negative_share": 0.5,
        "hard_negative_churn": third.churn,
    }


def test_restored_lists_are_those_of_the_epoch_before():
    module = HardNegatives(make_classifier(weights()), 5)
    module.lists.assign(reference.hard_negatives(weights().astype(np.float64), 5))
    assert module.refresh().churn == 0.0


def test_progress_is_told_after_each_block(sizes):
    sizes(14, 3)
    told = []
    HardNegatives(make_classifier(weights()), 5).refresh(lambda *report: told.append(report))
    assert told == [("hard negatives", done, 3) for done in range(4)]


def test_the_next_block_travels_during_the_search():
    """Neither the search nor the gathering in the graph of a block waits for the other."""
    layer = make_classifier(weights())
    layout = top_lists.arrangement(14, 5)
    variables = (tf.Variable(tf.zeros([NUM_INSTANCES, 5])), tf.Variable(tf.zeros([NUM_INSTANCES, 5], tf.int32)))
    graph = hardest_classes._search_block.get_concrete_function(
        layer, tf.zeros([SIZE, layout.width]), tf.constant(0), top_lists.Lists(*variables), layout
    ).graph
    (search,) = [operation for operation in graph.get_operations() if operation.type in ("While", "StatelessWhile")]
    (gathering,) = [operation for operation in graph.get_operations() if operation.type in ("If", "StatelessIf")]
    assert gathering not in ancestors(search)
    assert search not in ancestors(gathering)


def ancestors(operation: tf.Operation) -> set:
    found, waiting = set(), [operation]
    while waiting:
        current = waiting.pop()
        for parent in [*(tensor.op for tensor in current.inputs), *current.control_inputs]:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found
