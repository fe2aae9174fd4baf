"""Hard negatives: the K other classes with the most similar weights; exact, streamed, over all workers."""

from __future__ import annotations

import time
from typing import NamedTuple

import tensorflow as tf

from instcls_tf.checks import require_argument
from instcls_tf.classifier import top_k
from instcls_tf.classifier.directions import unit_vectors
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.classifier.tiles import SEARCH_SIZES, SearchSizes
from instcls_tf.config import PretrainConfig
from instcls_tf.distributed import collectives
from instcls_tf.progress import OnProgress, no_progress

_NO_LISTS = "hard_negatives: HardNegatives without lists, must be filled by its refresh() before"


def hard_negatives(
    classifier: ShardedClassifier, k: int, progress: OnProgress = no_progress, sizes: SearchSizes = SEARCH_SIZES
) -> tf.Tensor:
    """The K classes with the highest cos(w_i, w_j), j != i, for each class that this worker owns.

    All workers call it together. They go through the N classes in the order of ids, block by block; the owners of a
    block send it to all, so the lists (ties included) do not depend on the number of workers.

    Args:
      classifier: holds this worker's classes.
      k: K, below N.
      progress: called with a stage's name, blocks done and blocks in all.
      sizes: of blocks and tiles.

    Returns:
      `[n, K]` int32 class ids, the most similar first; list i belongs to class `classifier.begin + i`. A training
      step takes `HardNegatives`, which has the lists of all workers.

    Raises:
      UserError: k is out of range.
    """
    return _search(classifier, k, progress, sizes).ids.read_value()


def _search(classifier: ShardedClassifier, k: int, progress: OnProgress, sizes: SearchSizes) -> top_k.Lists:
    """The lists as variables, which grow in place."""
    num_instances = classifier.num_instances
    _check_k(classifier, k)
    num_blocks = -(-num_instances // sizes.candidates)
    layout = top_k.arrangement(-(-num_instances // num_blocks), k)
    lists = top_k.Lists(
        tf.Variable(tf.fill([classifier.num_local, k], -float("inf")), trainable=False),
        tf.Variable(tf.fill([classifier.num_local, k], -1), trainable=False),
    )
    progress("hard negatives", 0, num_blocks)
    columns = _first_block(classifier, layout)
    for index in range(num_blocks):
        first = tf.constant(index * layout.candidates)
        columns = _search_block(classifier, columns, first, lists, layout, sizes)
        progress("hard negatives", index + 1, num_blocks)
    return lists


def _check_k(classifier: ShardedClassifier, k: int) -> None:
    num_instances = classifier.num_instances
    require_argument("k", k, 1 <= k < num_instances, f"at least 1 and below the number of classes, {num_instances}")


@tf.function(autograph=False)
def _first_block(classifier: ShardedClassifier, layout: top_k.Arrangement) -> tf.Tensor:
    return _gather_block(classifier, tf.constant(0), layout)


@tf.function(autograph=False)
def _search_block(
    classifier: ShardedClassifier,
    columns: tf.Tensor,
    first: tf.Tensor,
    lists: top_k.Lists,
    layout: top_k.Arrangement,
    sizes: SearchSizes,
) -> tf.Tensor:
    """Merges the block that begins with class `first`; meanwhile the next one, which it returns, is on its way."""
    last = tf.minimum(first + layout.candidates, classifier.num_instances)
    block = top_k.Block(columns, first, last)
    # Nothing below depends on it: the executor runs both at once. After the last block nothing travels.
    following = tf.cond(
        last < classifier.num_instances, lambda: _gather_block(classifier, last, layout), lambda: columns
    )

    def merge_tile(low: tf.Tensor) -> tuple[tf.Tensor]:
        high = tf.minimum(low + max(1, sizes.tile_elements // layout.width), classifier.num_local)
        local = tf.range(low, high)
        queries = unit_vectors(classifier.read(local))  # [q, D]
        members = top_k.Lists(*(variable.sparse_read(local) for variable in lists))
        merged = top_k.merge(members, queries, classifier.begin + local, block, layout)
        for variable, part in zip(lists, merged):
            variable.scatter_update(tf.IndexedSlices(part, local))
        return (high,)

    tf.while_loop(lambda low: low < classifier.num_local, merge_tile, (tf.constant(0),), parallel_iterations=1)
    return following


def _gather_block(classifier: ShardedClassifier, first: tf.Tensor, layout: top_k.Arrangement) -> tf.Tensor:
    """Directions of the classes from `first` on, put together from their owners and arranged; `[D, G s]`."""
    low = tf.clip_by_value(first, classifier.begin, classifier.end)
    high = tf.clip_by_value(first + layout.candidates, classifier.begin, classifier.end)
    own_part = unit_vectors(classifier.read(tf.range(low, high) - classifier.begin))
    return top_k.arrange(collectives.all_gather(own_part, f"{classifier.name}_candidates"), layout)


class Refresh(NamedTuple):
    """What a renewal of the lists took and brought."""

    seconds: float
    churn: float | None  # the share of all workers' list members that are new; None if there were no lists before

    def metrics(self, epoch_seconds: float) -> dict[str, float]:
        """For the log of an epoch that took `epoch_seconds`, this renewal included."""
        measured = {"hard_negative_seconds": self.seconds, "hard_negative_share": self.seconds / epoch_seconds}
        return measured if self.churn is None else {**measured, "hard_negative_churn": self.churn}


class HardNegatives(tf.Module):
    """The lists of this worker's classes, renewed once per epoch, and their lookup for a batch.

    What a `ShardedClassifier` with smoothing is called with: `refresh` makes the lists, before the first step (also
    before a `tf.function` or a Keras model of it is traced) and whenever they are to follow the class weights.

    Args:
      classifier: whose classes.
      k: K, at least 1 and below N.
      sizes: of blocks and tiles of the search.
      name: of the messages between workers, so another for each where two are used in one step.

    Raises:
      UserError: k is out of range.
    """

    def __init__(
        self,
        classifier: ShardedClassifier,
        k: int = PretrainConfig.hard_negatives,
        sizes: SearchSizes = SEARCH_SIZES,
        name: str = "hard_negatives",
    ):
        super().__init__(name=name)
        _check_k(classifier, k)
        self.classifier, self.k, self._sizes = classifier, k, sizes
        # -1: no list yet.
        self.lists = tf.Variable(-tf.ones([classifier.num_local, k], tf.int32), trainable=False, name="lists")

    def refresh(self, progress: OnProgress = no_progress) -> Refresh:
        """Recomputes the lists from the current class weights; all workers together.

        Args:
          progress: called with a stage's name, blocks done and blocks in all.

        Raises:
          RuntimeError: on all workers, a list is not full: class weights are not finite.
        """
        started = time.monotonic()
        found = _search(self.classifier, self.k, progress, self._sizes)
        kept, before, now = self._replace(found.ids).numpy()
        if now < self.classifier.num_instances * self.k:
            raise RuntimeError(
                f"the search for hard negatives left {self.classifier.num_instances * self.k - now} places of the"
                f" {self.classifier.num_instances} lists of {self.k} empty, as it does if class weights are not finite"
            )
        return Refresh(time.monotonic() - started, float(1 - kept / before) if before else None)

    @tf.function(autograph=False)
    def _replace(self, new_lists: tf.Variable) -> tf.Tensor:
        """Replaces the lists; returns int64 numbers over all workers: members kept (if any), before and now."""
        num_local = self.classifier.num_local

        def replace_tile(low: tf.Tensor, kept: tf.Tensor, before: tf.Tensor, now: tf.Tensor) -> tuple[tf.Tensor, ...]:
            high = tf.minimum(low + max(1, self._sizes.tile_elements // (4 * self.k)), num_local)
            local = tf.range(low, high)
            old, new = self.lists.sparse_read(local), new_lists.sparse_read(local)  # [q, K]
            # A list names nobody twice: what both name are neighbours when they are sorted together.
            both = tf.sort(tf.concat([old, new], axis=1), axis=1)
            kept += tf.math.count_nonzero(both[:, 1:] == both[:, :-1])
            before += tf.math.count_nonzero(old >= 0)
            now += tf.math.count_nonzero(new >= 0)
            self.lists.scatter_update(tf.IndexedSlices(new, local))
            return high, kept, before, now

        zero = tf.constant(0, tf.int64)
        _, *counted = tf.while_loop(
            lambda low, *_: low < num_local, replace_tile, (tf.constant(0), zero, zero, zero), parallel_iterations=1
        )
        return collectives.sum_over_workers(tf.stack(counted), f"{self.name}_kept")

    def lookup(self, instance_ids: tf.Tensor) -> tf.Tensor:
        """The lists of a batch, whichever workers own its classes; all workers together.

        Each list travels once, however many rows share its class: the owners send those of the batch's classes in the
        order of ids, which everybody knows.

        Args:
          instance_ids: `[B]` int32, of the whole global batch.

        Returns:
          `[B, K]` int32 class ids.

        Raises:
          ValueError: there are no lists yet: neither `refresh` nor a checkpoint has filled them. On all workers alike.
          tf.errors.InvalidArgumentError: likewise, with more workers than classes.
        """
        has_idle_workers = self.classifier.num_instances < collectives.size()
        if not has_idle_workers:
            self._refuse_none_yet()
        begin, end = self.classifier.begin, self.classifier.end
        classes, _ = tf.unique(tf.sort(instance_ids))  # [u]
        own = classes[(classes >= begin) & (classes < end)] - begin
        lists = collectives.all_gather(self.lists.sparse_read(own), f"{self.name}_lists")  # [u, K]
        if has_idle_workers:  # a worker without a class has no list to look at, and would wait here for the others
            tf.debugging.assert_non_negative(lists[:, :1], _NO_LISTS)
        return tf.gather(lists, tf.searchsorted(classes, instance_ids))

    def _refuse_none_yet(self) -> None:
        """Looks at one list; in a `tf.function` while that is traced, so that a step pays nothing."""
        with tf.init_scope():
            first = self.lists.sparse_read(tf.range(min(1, self.classifier.num_local)))  # [1, K]
            if tf.executing_eagerly() and (first.numpy() < 0).any():
                raise ValueError(_NO_LISTS)
