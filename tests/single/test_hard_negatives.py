"""The search for hard negatives and their lookup, for one worker, against all N x N similarities."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier import hard_negatives as searching
from instcls_tf.classifier import top_k
from instcls_tf.classifier.directions import unit_vectors
from instcls_tf.classifier.hard_negatives import HardNegatives, hard_negatives
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.classifier.tiles import SEARCH_SIZES, SearchSizes
from instcls_tf.distributed import collectives
from instcls_tf.errors import UserError
from tests import reference

NUM_INSTANCES, SIZE = 41, 6


def sizes_of(candidates: int, queries: int) -> SearchSizes:
    """The most candidates per block and about the queries per tile."""
    return SearchSizes(candidates, min(candidates, NUM_INSTANCES) * queries)


def weights() -> np.ndarray:
    random = np.random.default_rng(1)
    return (random.normal(size=[NUM_INSTANCES, SIZE]) * random.uniform(0.1, 10, [NUM_INSTANCES, 1])).astype(np.float32)


def make_classifier(values: np.ndarray) -> ShardedClassifier:
    layer = ShardedClassifier(*values.shape)
    layer.write(tf.range(len(values)), tf.constant(values, tf.float32))
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
def test_equals_the_sorted_similarities(candidates, queries, k):
    lists = hard_negatives(make_classifier(weights()), k, sizes=sizes_of(candidates, queries))
    assert lists.dtype == tf.int32
    np.testing.assert_array_equal(lists, reference.hard_negatives(weights().astype(np.float64), k))


@pytest.mark.parametrize(("candidates", "queries"), [(32768, 1000), (7, 5), (2, 41)])
def test_ties_keep_the_order_of_ids_and_never_list_oneself(candidates, queries):
    """Axes as weights, each several times: similarities are 1 or 0, exactly."""
    axis = np.arange(NUM_INSTANCES) % 4
    layer = make_classifier(np.eye(SIZE)[axis])
    lists = hard_negatives(layer, NUM_INSTANCES - 1, sizes=sizes_of(candidates, queries)).numpy()
    everyone = np.arange(NUM_INSTANCES)
    for i in everyone:
        same = [j for j in everyone if j != i and axis[j] == axis[i]]
        other = [j for j in everyone if axis[j] != axis[i]]
        np.testing.assert_array_equal(lists[i], same + other)


def test_rounding_does_not_depend_on_the_place_of_a_weight():
    """Else equal classes would come in another order on another number of workers."""
    drawn = tf.random.stateless_normal([1000, 37], [1, 2])
    normalized = tf.function(unit_vectors, input_signature=[tf.TensorSpec([None, 37])])
    whole = normalized(drawn).numpy()
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, rtol=1e-6)
    for begin, end in [(0, 1), (0, 7), (3, 70), (501, 1000), (990, 999)]:
        np.testing.assert_array_equal(normalized(drawn[begin:end]), whole[begin:end])


def test_weights_without_a_direction_are_similar_to_nobody():
    """Length 0 gives cosine 0 with all, half of the least length half; one just long enough has its direction."""
    values = weights()
    values[3], values[8] = 0.0, 1.001e-6 * reference.normalize(values[8:9])[0]
    values[9] = 0.5e-6 * reference.normalize(values[9:10])[0]
    expected = values.astype(np.float64)
    directions = reference.normalize(np.delete(expected, 3, axis=0))
    directions[8] *= 0.5
    cosines = np.insert(np.insert(directions @ directions.T, 3, 0.0, axis=0), 3, 0.0, axis=1)
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(hard_negatives(make_classifier(values), 10), order)
    assert order[3].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_follows_the_weights():
    layer = make_classifier(weights())
    before = hard_negatives(layer, 5).numpy()
    layer.write(tf.range(NUM_INSTANCES), tf.constant(weights()[::-1].copy()))
    np.testing.assert_array_equal(hard_negatives(layer, 5), NUM_INSTANCES - 1 - before[::-1])


@pytest.mark.parametrize("k", [0, NUM_INSTANCES, 1000])
def test_k_out_of_range(k):
    layer = make_classifier(weights())
    for refused in (hard_negatives, HardNegatives):
        with pytest.raises(UserError, match=f"^k={k}: must be at least 1 and below the number of classes, 41$"):
            refused(layer, k)


def test_a_place_that_stays_empty_is_told():
    """Of weights that are no numbers nothing is similar to anything."""
    values = weights()
    values[3, 0] = np.nan
    module = HardNegatives(make_classifier(values), NUM_INSTANCES - 1)
    with pytest.raises(RuntimeError, match=r"left .* places of the 41 lists of 40 empty, as it does if .* not finite"):
        module.refresh()


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


def test_lists_that_were_never_made_are_refused():
    """Their places would fall out of the labels as classes of other workers."""
    layer = make_classifier(weights())
    module = HardNegatives(layer, 5)
    ids = tf.constant([7, 0])
    step = tf.function(lambda: layer(tf.ones([2, SIZE]), ids, module, learning_rate=0.1).loss)
    for use in (step, step.python_function, lambda: module.lookup(ids)):
        with pytest.raises(ValueError, match="hard_negatives: HardNegatives without lists, must be filled by its"):
            use()
    module.lists.assign(reference.hard_negatives(weights().astype(np.float64), 5))  # as a checkpoint fills them
    assert np.isfinite(step()) and np.isfinite(step.python_function())


@pytest.mark.parametrize("rank", [1, 2])
def test_with_more_workers_than_classes_all_are_refused_at_the_same_point(rank):
    """The third of them has no list to look at: it would wait for those that have left before."""
    others = SimpleNamespace(gathered=lambda own, name: tf.fill([2, 1], place))
    with collectives.as_worker(rank, 3, others):
        module = HardNegatives(ShardedClassifier(2, SIZE), 1)
        assert module.classifier.num_local == (rank == 1)
        traced, place = tf.function(module.lookup), -1
        for lookup in (traced, module.lookup):
            with pytest.raises(tf.errors.InvalidArgumentError, match="HardNegatives without lists, must be filled by"):
                lookup(tf.range(2))
        place = 1
        np.testing.assert_array_equal(tf.function(module.lookup)(tf.range(2)), [[1], [1]])


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


def test_progress_is_told_after_each_block():
    told = []
    HardNegatives(make_classifier(weights()), 5, sizes_of(14, 3)).refresh(lambda *report: told.append(report))
    assert told == [("hard negatives", done, 3) for done in range(4)]


def test_the_next_block_travels_during_the_search():
    """Neither the search nor the gathering in the graph of a block waits for the other."""
    layer = make_classifier(weights())
    layout = top_k.arrangement(14, 5)
    variables = (tf.Variable(tf.zeros([NUM_INSTANCES, 5])), tf.Variable(tf.zeros([NUM_INSTANCES, 5], tf.int32)))
    graph = searching._search_block.get_concrete_function(
        layer, tf.zeros([SIZE, layout.width]), tf.constant(0), top_k.Lists(*variables), layout, SEARCH_SIZES
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
