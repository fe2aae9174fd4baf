"""Batches for every worker, in an order that does not depend on how many workers there are.

An epoch is a permutation of the instance ids that depends on (seed, epoch) alone; it is computed, never stored. Step s
takes the next `batch_size` ids, cut into groups of `micro_batch`, and worker r the r-th even share of the groups: the
shares, joined by rank, are the same global batch for every number of workers, and no group is ever cut in two. The last
batch of an epoch and the last group of a batch may be smaller. Every worker has the same number of steps: one whose
share is empty gets one row of id -1 (padding, to be masked).

TFDS datasets are streams and cannot be permuted: each worker reads its own part of the records through a shuffle
buffer. Every id still comes exactly once per epoch, but which ids meet in a batch depends on the number of workers, and
records that lie far apart seldom meet.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from instcls_tf import partition
from instcls_tf.data.augment import Views, make_views
from instcls_tf.data.sources import Source

PADDING_ID = -1
_SHUFFLE_BUFFER = 16_384  # Encoded examples: about 1.8 GB of ImageNet.
_ORDER_TAG = 7
# index_shuffle's default of 4 rounds leaves neighbouring epochs correlated (0.75 at 50,000 ids).
_SHUFFLE_ROUNDS = 16


def steps_per_epoch(num_instances: int, batch_size: int) -> int:
    """Steps that show every instance once; the last one may be smaller."""
    return -(-num_instances // batch_size)


def training_batches(
    source: Source,
    *,
    views: Views,
    batch_size: int,
    num_views: int,
    seed: int,
    last_step: int,
    first_step: int = 0,
    micro_batch: int = 1,
    rank: int = 0,
    num_workers: int = 1,
) -> tf.data.Dataset:
    """This worker's batches of augmented views for the steps `first_step` to `last_step`, over all epochs.

    Args:
      source: the images.
      views: the augmentation, from `make_views`.
      batch_size: instances per step, all workers together.
      num_views: views per instance, V.
      seed: of the order of instances.
      last_step: one after the last step of the run.
      first_step: where to begin; in mid-epoch the rest of that epoch follows, as in the run that was interrupted.
      micro_batch: instances per group, of which every worker gets whole ones.
      rank: this worker, r.
      num_workers: T.

    Returns:
      One prefetched dataset of `last_step - first_step` elements `(views, instance_ids)`: uint8 `[b, V, S, S, 3]` and
      int32 `[b]`, -1 for padding.
    """
    shares = _Shares(source.num_instances, batch_size, micro_batch, rank, num_workers)
    elements = _elements(source, shares, first_step, last_step, seed)
    batches = _batches(source, shares, elements, views, num_views, first_step, last_step)
    return batches.map(lambda images, ids, labels: (images, ids)).prefetch(2)


def inference_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    micro_batch: int = 1,
    rank: int = 0,
    num_workers: int = 1,
    shuffle_seed: int | None = None,
) -> tf.data.Dataset:
    """One pass over all images, without augmentation: the largest centred square, resized.

    Args:
      source: the images.
      image_size: side S, pixels.
      batch_size: images per step, all workers together.
      micro_batch: images per group, of which every worker gets whole ones.
      rank: this worker.
      num_workers: T.
      shuffle_seed: None for the order of ids, else the seed of a permutation (of a shuffle buffer for TFDS).

    Returns:
      A prefetched dataset of `(images, instance_ids, labels)`: uint8 `[b, S, S, 3]`, int32 `[b]` (-1 for padding) and
      int32 `[b]` (-1 if unknown).
    """
    shares = _Shares(source.num_instances, batch_size, micro_batch, rank, num_workers)
    steps = shares.steps
    elements = _elements(source, shares, 0, steps, shuffle_seed)
    batches = _batches(source, shares, elements, make_views("none", image_size, 0), 1, 0, steps)
    return batches.map(lambda images, ids, labels: (images[:, 0], ids, labels)).prefetch(2)


@dataclasses.dataclass(frozen=True)
class _Shares:
    """Which part of every global batch is this worker's."""

    num_instances: int
    batch_size: int
    micro_batch: int
    rank: int
    num_workers: int

    @property
    def steps(self) -> int:
        return steps_per_epoch(self.num_instances, self.batch_size)

    @property
    def full_batch(self) -> int:
        return min(self.batch_size, self.num_instances)

    @property
    def rows(self) -> int:
        """This worker's most rows in any batch, at least the one of padding."""
        # The last batch of an epoch can give a worker a whole group where a full one gives it a smaller last group.
        shares = [self._share(size, self.rank) for size in (self.full_batch, self.last_batch)]
        return max(1, *(end - begin for begin, end in shares))

    @property
    def last_batch(self) -> int:
        """Instances in the last batch of an epoch."""
        return self.num_instances - (self.steps - 1) * self.full_batch

    def _share(self, size, rank: int) -> tuple:
        """Begin and end of a worker's groups in a batch of `size` instances (an integer or an int64 tensor)."""
        begin, end = partition.bounds(-(-size // self.micro_batch), self.num_workers, rank)
        return partition.minimum(begin * self.micro_batch, size), partition.minimum(end * self.micro_batch, size)

    def of_step(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Where the worker's share of a step (int64, within the epoch) begins in the global batch, and its size."""
        size = tf.minimum(tf.constant(self.batch_size, tf.int64), self.num_instances - step * self.batch_size)
        begin, end = self._share(size, self.rank)
        return begin, end - begin

    def of_records(self) -> tuple[int, int]:
        """A part of the records of exactly as many as this worker's shares of an epoch sum up to."""
        counts = []
        for rank in range(self.rank + 1):
            full, rest = self._share(self.full_batch, rank), self._share(self.last_batch, rank)
            counts.append((self.steps - 1) * (full[1] - full[0]) + rest[1] - rest[0])
        return sum(counts[:-1]), sum(counts)


def _elements(source: Source, shares: _Shares, first_step: int, last_step: int, seed: int | None) -> tf.data.Dataset:
    """`(what the loader takes, id int64, label int32)`, exactly `shares.rows` per step; fillers are ignored later."""
    if source.random_access:
        return _permuted_elements(source, shares, first_step, last_step, seed)
    return _streamed_elements(source, shares, first_step, last_step, seed)


def _permuted_elements(
    source: Source, shares: _Shares, first_step: int, last_step: int, seed: int | None
) -> tf.data.Dataset:
    labels = tf.constant(source.labels)

    def of_step(step: tf.Tensor) -> tuple:
        epoch, step = step // shares.steps, step % shares.steps
        begin, _ = shares.of_step(step)
        places = step * shares.batch_size + begin + tf.range(shares.rows, dtype=tf.int64)
        places = tf.minimum(places, shares.num_instances - 1)
        ids = places if seed is None else _permute(places, seed, epoch, shares.num_instances)
        return ids, ids, tf.gather(labels, ids)

    return tf.data.Dataset.range(first_step, last_step).map(of_step).unbatch()


def _permute(places: tf.Tensor, seed: int, epoch: tf.Tensor, size: int) -> tf.Tensor:
    """The ids at some places (int64 `[b]`) of an epoch's permutation of `range(size)`."""
    key = tf.stack([tf.constant(seed, tf.int64), epoch, tf.constant(_ORDER_TAG, tf.int64)])
    largest = tf.constant(size - 1, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(index=places, seed=key, max_index=largest, rounds=_SHUFFLE_ROUNDS)


def _streamed_elements(
    source: Source, shares: _Shares, first_step: int, last_step: int, seed: int | None
) -> tf.data.Dataset:
    begin, end = shares.of_records()
    per_epoch = shares.steps * shares.rows
    filler = (tf.constant(""), tf.constant("")), tf.constant(-1, tf.int64), tf.constant(-1)
    fillers = tf.data.Dataset.from_tensors(filler).repeat(per_epoch - (end - begin))
    if begin == end:  # TFDS reads no empty part.
        return fillers.repeat()
    records = source.records(begin, end, in_order=seed is None)

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = records
        if seed is not None:
            # Of this graph alone. With a global seed of 0 TensorFlow would ask whether the tensor below is 0, too.
            tf.random.set_seed(1)
            order = order.shuffle(_SHUFFLE_BUFFER, seed=(seed << 20) + epoch, reshuffle_each_iteration=False)
        done = tf.where(epoch == first_step // shares.steps, first_step % shares.steps * shares.rows, 0)
        return order.concatenate(fillers).skip(tf.cast(done, tf.int64))

    epochs = tf.data.Dataset.range(first_step // shares.steps, -(-last_step // shares.steps))
    return epochs.flat_map(of_epoch)


def _batches(
    source: Source,
    shares: _Shares,
    elements: tf.data.Dataset,
    views: Views,
    num_views: int,
    first_step: int,
    last_step: int,
) -> tf.data.Dataset:
    """Loads, crops, batches and augments: `(uint8 [b, V, S, S, 3], int32 [b], int32 [b])`."""
    load, size, rows = source.loader(), views.image_size, shares.rows

    def slots(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        begin, count = shares.of_step(step % shares.steps)
        # One row more than the batch: padding after an empty share at its end has draws of its own.
        draws = views.draws(step, shares.full_batch + 1, num_views)[begin:][:rows]
        draws = tf.pad(draws, [[0, rows - tf.shape(draws)[0]], [0, 0], [0, 0]])
        return tf.range(rows, dtype=tf.int64) < count, draws  # [rows], [rows, V, P]

    def load_and_crop(element: tuple, slot: tuple) -> tuple:
        (key, instance_id, label), (used, draws) = element, slot
        empty = tf.zeros([num_views, size, size, 3], tf.uint8)
        images = tf.cond(used, lambda: views.crop(load(key), draws), lambda: empty)
        instance_id = tf.where(used, tf.cast(instance_id, tf.int32), PADDING_ID)
        return images, draws, instance_id, tf.where(used, label, -1)

    def augment(images: tf.Tensor, draws: tf.Tensor, ids: tf.Tensor, labels: tf.Tensor) -> tuple:
        kept = tf.maximum(1, tf.reduce_sum(tf.cast(ids != PADDING_ID, tf.int32)))
        flat = tf.reshape(images[:kept], [-1, size, size, 3]), tf.reshape(draws[:kept], [-1, views.num_draws])
        images = tf.reshape(views.augment(*flat), [-1, num_views, size, size, 3])
        return images, ids[:kept], labels[:kept]

    parallel = tf.data.AUTOTUNE
    slot_stream = tf.data.Dataset.range(first_step, last_step).map(slots).unbatch()
    dataset = tf.data.Dataset.zip((elements, slot_stream)).map(load_and_crop, num_parallel_calls=parallel)
    dataset = dataset.batch(rows, drop_remainder=True).map(augment, num_parallel_calls=parallel)
    return dataset.apply(tf.data.experimental.assert_cardinality(last_step - first_step))
