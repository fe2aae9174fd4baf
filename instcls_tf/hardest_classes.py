"""Hard negatives: the K other classes with the most similar weights; exact, streamed, over all workers."""

from __future__ import annotations

import tensorflow as tf

from instcls_tf import collectives
from instcls_tf.classifier import ShardedClassifier

# Candidate rows that travel at a time, [c, D], and elements of one tile of similarities, [q, c].
_CANDIDATES = 32768
_TILE_ELEMENTS = 2**23


def hard_negatives(classifier: ShardedClassifier, k: int) -> tf.Tensor:
    """The K classes with the highest cos(w_i, w_j), j != i, for each class that this worker owns.

    All workers call it together. They go through the N classes in the order of ids, block by block; the owners of a
    block send it to all, so the lists (ties included) do not depend on the number of workers.

    Args:
      classifier: holds this worker's rows.
      k: K, below N.

    Returns:
      `[n, K]` int32 class ids, the most similar first; row i belongs to class `classifier.begin + i`.
    """
    if not 1 <= k < classifier.num_instances:
        raise ValueError(f"k={k}: must be at least 1 and below the number of classes, {classifier.num_instances}")
    return _search(classifier, k)


@tf.function
def _search(classifier: ShardedClassifier, k: int) -> tf.Tensor:
    num_instances = classifier.num_instances

    def add_block(first, similarities, classes):
        last = tf.minimum(first + _CANDIDATES, num_instances)
        block = _gather_block(classifier, first, last)  # [c, D]
        similarities, classes = _merge_block(classifier, block, first, similarities, classes, k)
        return last, similarities, classes

    *_, classes = tf.while_loop(
        lambda first, *_: first < num_instances,
        add_block,
        (
            tf.constant(0),
            tf.fill([classifier.num_local, k], -float("inf")),
            tf.fill([classifier.num_local, k], -1),
        ),
        parallel_iterations=1,
    )
    return classes


def _gather_block(classifier: ShardedClassifier, first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """L2-normalised weights of the classes first .. last-1, put together from their owners; `[c, D]`."""
    low = tf.clip_by_value(first, classifier.begin, classifier.end)
    high = tf.clip_by_value(last, classifier.begin, classifier.end)
    own_part = tf.math.l2_normalize(classifier.read(tf.range(low, high) - classifier.begin), axis=1)
    return collectives.all_gather(own_part, f"{classifier.name}_candidates")


def _merge_block(classifier, block, first, similarities, classes, k):
    """Lets the candidates of one block into the lists `[n, K]` of all local classes, a tile of queries at a time."""
    num_candidates = tf.shape(block)[0]
    tile = tf.maximum(1, _TILE_ELEMENTS // num_candidates)
    num_local = tf.constant(classifier.num_local)
    # The lists are rewritten tile by tile; a TensorArray of tiles avoids copying [n, K] once per tile.
    num_tiles = (num_local + tile - 1) // tile
    parts = tf.TensorArray(tf.float32, num_tiles, infer_shape=False, element_shape=[None, k])
    part_classes = tf.TensorArray(tf.int32, num_tiles, infer_shape=False, element_shape=[None, k])

    def merge_tile(index, parts, part_classes):
        low = index * tile
        high = tf.minimum(low + tile, num_local)
        queries = tf.math.l2_normalize(classifier.read(tf.range(low, high)), axis=1)  # [q, D]
        cosines = _without_self(tf.matmul(queries, block, transpose_b=True), classifier.begin + low - first)  # [q, c]
        best, place = tf.math.top_k(cosines, tf.minimum(k, num_candidates))
        # Earlier blocks stand first, so that equal similarities keep the order of ids.
        candidates = tf.concat([similarities[low:high], best], axis=1)
        candidate_classes = tf.concat([classes[low:high], place + first], axis=1)
        best, place = tf.math.top_k(candidates, k)
        merged = tf.gather(candidate_classes, place, batch_dims=1)
        return index + 1, parts.write(index, best), part_classes.write(index, merged)

    _, parts, part_classes = tf.while_loop(
        lambda index, *_: index < num_tiles, merge_tile, (tf.constant(0), parts, part_classes), parallel_iterations=1
    )
    similarities = tf.ensure_shape(parts.concat(), [classifier.num_local, k])
    return similarities, tf.ensure_shape(part_classes.concat(), [classifier.num_local, k])


def _without_self(cosines: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Rules out query q against candidate q + offset, which is the same class."""
    num_queries, num_candidates = tf.unstack(tf.shape(cosines))
    first = tf.maximum(0, -offset)
    queries = tf.range(first, tf.maximum(first, tf.minimum(num_queries, num_candidates - offset)))
    place = tf.stack([queries, queries + offset], axis=1)
    return tf.tensor_scatter_nd_update(cosines, place, tf.fill([tf.size(queries)], -float("inf")))


class HardNegatives(tf.Module):
    """The lists of this worker's classes, renewed once per epoch, and their lookup for a batch.

    Args:
      classifier: whose classes.
      k: K.
    """

    def __init__(self, classifier: ShardedClassifier, k: int):
        super().__init__(name="hard_negatives")
        self.classifier, self.k = classifier, k
        self.lists = tf.Variable(tf.zeros([classifier.num_local, k], tf.int32), trainable=False, name="lists")

    def refresh(self) -> None:
        """Recomputes the lists from the current class weights; all workers together."""
        self.lists.assign(hard_negatives(self.classifier, self.k))

    def lookup(self, instance_ids: tf.Tensor) -> tf.Tensor:
        """The lists of a batch, whichever workers own its classes.

        Args:
          instance_ids: `[b]` int32, this worker's share; all workers call together, b may differ.

        Returns:
          `[b, K]` int32 class ids.
        """
        classifier = self.classifier
        all_ids, is_own = collectives.all_gather_ids(instance_ids, f"{self.name}_ids")  # [B]
        place = tf.where((all_ids >= classifier.begin) & (all_ids < classifier.end))  # [m, 1]
        local = self.lists.sparse_read(tf.gather_nd(all_ids, place) - classifier.begin)  # [m, K]
        # Each class has one owner: everybody else contributes zeros to the sum.
        lists = tf.scatter_nd(tf.cast(place, tf.int32), local, [tf.size(all_ids), self.k])  # [B, K]
        return collectives.sum_and_keep_own_rows(lists, is_own, f"{self.name}_lists")
