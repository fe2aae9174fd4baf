"""Which images a worker sees when, in an order that does not depend on how many workers there are.

An epoch is a permutation of the instance ids that depends on (seed, epoch) alone; it is computed, never stored. Step s
takes the next `batch_size` ids, cut into groups of `micro_batch`, and worker r the r-th even share of the groups: the
shares, joined by rank, are the same global batch for every number of workers, and no group is ever cut in two. The last
batch of an epoch and the last group of a batch may be smaller. Every worker has the same number of steps: one whose
share is empty gets one row of id -1 (padding, to be masked).

With PIC's window (`sliding_window`), an epoch is one place of the window, and its ids are a permutation of those in it.

Record files (TFDS, `records:`) are streams and cannot be permuted. There, each group of the global batch has a stream
of its own: a fixed part of the epoch's random order of shards. A worker reads the streams of its groups, so the order
of the global batch is the same for every number of workers, too. Records that lie far apart seldom meet.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from instcls_tf.config import Window
from instcls_tf.data.permutation import permute
from instcls_tf.data.sliding_window import sliding_window_ids
from instcls_tf.data.source import RandomAccessSource, Source, StreamedSource
from instcls_tf.data.threads import parallel_calls
from instcls_tf.distributed import partition


@dataclasses.dataclass(frozen=True)
class Shares:
    """Which part of every global batch is this worker's."""

    num_instances: int
    batch_size: int
    micro_batch: int
    rank: int
    num_workers: int

    @property
    def steps(self) -> int:
        return partition.steps_per_epoch(self.num_instances, self.batch_size)

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

    def _share(self, size: Any, rank: int) -> tuple[Any, Any]:
        """Begin and end of a worker's groups in a batch of `size` instances (an integer or an int64 tensor)."""
        begin, end = partition.bounds(-(-size // self.micro_batch), self.num_workers, rank)
        return partition.minimum(begin * self.micro_batch, size), partition.minimum(end * self.micro_batch, size)

    def share_size(self, size: int) -> int:
        """This worker's instances in a batch of `size`."""
        begin, end = self._share(size, self.rank)
        return end - begin

    def of_step(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Where the worker's share of a step (int64, within the epoch) begins in the global batch, and its size."""
        size = tf.minimum(tf.constant(self.batch_size, tf.int64), self.num_instances - step * self.batch_size)
        begin, end = self._share(size, self.rank)
        return begin, end - begin

    def groups(self, size: int) -> tuple[int, int]:
        """The first of this worker's groups in a batch of `size` instances, and one after the last."""
        return partition.bounds(-(-size // self.micro_batch), self.num_workers, self.rank)

    def group(self, index: Any, size: int) -> tuple[Any, Any]:
        """Begin and end of a group (an integer or an int64 tensor) in a batch of `size` instances."""
        begin = index * self.micro_batch
        return begin, partition.minimum(begin + self.micro_batch, size)

    def of_records(self) -> tuple[int, int]:
        """A part of the records of exactly as many as this worker's shares of an epoch sum up to."""
        counts = []
        for rank in range(self.rank + 1):
            full, rest = self._share(self.full_batch, rank), self._share(self.last_batch, rank)
            counts.append((self.steps - 1) * (full[1] - full[0]) + rest[1] - rest[0])
        return sum(counts[:-1]), sum(counts)


def elements(
    source: Source,
    shares: Shares,
    slots: int,
    first_step: int,
    last_step: int,
    seed: int | None,
    window: Window | None = None,
) -> tf.data.Dataset:
    """The images of this worker's batches, one by one.

    Args:
      source: the images.
      shares: which part of each batch is this worker's.
      slots: elements of a step, at least this worker's rows; fillers behind these are ignored later.
      first_step: where to begin, counted over all epochs.
      last_step: one after the last step.
      seed: of the order; None for that of ids.
      window: PIC's, of sources that are read in any order.

    Returns:
      A dataset of scalars `(what the loader takes, id int64, label int32)`, exactly `slots` per step.
    """
    if source.random_access:
        return _permuted_elements(source, shares, slots, first_step, last_step, seed, window)
    return _streamed_elements(source, shares, slots, first_step, last_step, seed)


def _permuted_elements(
    source: RandomAccessSource,
    shares: Shares,
    slots: int,
    first_step: int,
    last_step: int,
    seed: int | None,
    window: Window | None,
) -> tf.data.Dataset:
    labels = tf.constant(source.labels)

    def of_step(step: tf.Tensor) -> tuple:
        epoch, step = step // shares.steps, step % shares.steps
        begin, _ = shares.of_step(step)
        places = step * shares.batch_size + begin + tf.range(slots, dtype=tf.int64)
        places = tf.minimum(places, shares.num_instances - 1)
        if seed is None:
            ids = places
        elif window is None:
            ids = permute(places, seed, epoch, shares.num_instances)
        else:
            ids = sliding_window_ids(places, seed, epoch, source.num_instances, *window)
        return ids, ids, tf.gather(labels, ids)

    return tf.data.Dataset.range(first_step, last_step).map(of_step).unbatch()


def _streamed_elements(
    source: StreamedSource, shares: Shares, slots: int, first_step: int, last_step: int, seed: int | None
) -> tf.data.Dataset:
    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        done = tf.where(epoch == first_step // shares.steps, first_step % shares.steps, 0)
        done = tf.cast(done, tf.int64)
        if seed is None:
            return _in_order(source, shares, slots).skip(done * slots)
        full = _full_steps(source, shares, slots, epoch, seed, done)
        last = _last_step(source, shares, slots, epoch, seed)
        return full.concatenate(last) if shares.steps > 1 else last

    epochs = tf.data.Dataset.range(first_step // shares.steps, -(-last_step // shares.steps))
    serialized = epochs.flat_map(of_epoch)
    return serialized.map(source.parse, num_parallel_calls=parallel_calls())


_FILLER = (b"", 0)


def _fillers(count: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors((tf.constant(_FILLER[0]), tf.constant(_FILLER[1], tf.int64))).repeat(count)


def _in_order(source: StreamedSource, shares: Shares, slots: int) -> tf.data.Dataset:
    """An epoch of this worker's records by ascending ids, `(serialized, id)`; `slots` per step."""
    begin, end = shares.of_records()
    sizes = [shares.share_size(size) for size in (shares.full_batch, shares.last_batch)]
    # Read in two parts: skipping the first one would read it twice.
    middle = begin + (shares.steps - 1) * sizes[0]
    full, last = (source.shards.read(*part, in_order=True) for part in ((begin, middle), (middle, end)))
    full = _padded(full, sizes[0], slots, shares.steps - 1)
    return full.concatenate(_padded(last, sizes[1], slots, 1))


def _padded(records: tf.data.Dataset, size: int, slots: int, steps: Any) -> tf.data.Dataset:
    """Cuts a dataset of `size` records per step into steps and fills each up to `slots`."""
    if size == 0:
        return _fillers(tf.cast(steps, tf.int64) * slots)
    if size == slots:
        return records

    def fill(serialized: tf.Tensor, ids: tf.Tensor) -> tuple:
        return tf.concat([serialized, tf.fill([slots - size], _FILLER[0])], 0), tf.pad(ids, [[0, slots - size]])

    return records.batch(size, drop_remainder=True).map(fill).unbatch()


def _full_steps(
    source: StreamedSource, shares: Shares, slots: int, epoch: tf.Tensor, seed: int, done: tf.Tensor
) -> tf.data.Dataset:
    """All but the last step of an epoch, without the first `done`: group k of every step comes from stream k."""
    steps, size = shares.steps - 1, shares.full_batch
    first, end = shares.groups(size)
    num_streams = -(-size // shares.micro_batch)

    def stream(group: tf.Tensor) -> tf.data.Dataset:
        begin, stop = shares.group(group, size)
        rows = stop - begin
        # Streams lie one after the other in the epoch's order of shards.
        records = source.shards.stream(
            steps * begin, steps * stop, seed=seed, epoch=epoch, num_streams=num_streams, salt=group
        )
        return records.skip(done * rows).batch(rows, drop_remainder=True)

    groups = tf.data.Dataset.range(first, end)
    records = groups.interleave(stream, cycle_length=max(1, end - first), block_length=1).unbatch()
    return _padded(records, shares.share_size(size), slots, tf.maximum(steps - done, 0))


def _last_step(source: StreamedSource, shares: Shares, slots: int, epoch: tf.Tensor, seed: int) -> tf.data.Dataset:
    """The last step of an epoch, whose groups are dealt out anew: what the streams of the others leave over."""
    size, before = shares.last_batch, (shares.steps - 1) * shares.full_batch
    first, end = shares.groups(size)
    num_streams = -(-size // shares.micro_batch)

    def stream(group: tf.Tensor) -> tf.data.Dataset:
        begin, stop = shares.group(group, size)
        return source.shards.stream(
            before + begin, before + stop, seed=seed, epoch=epoch, num_streams=num_streams, salt=-1 - group
        )

    return _padded(tf.data.Dataset.range(first, end).flat_map(stream), shares.share_size(size), slots, 1)
