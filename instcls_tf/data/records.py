"""Images in TFRecord shards: `records:PATH`, as `python -m scripts.prepare` writes them, and TFDS's files.

Records can only be read one after the other. An epoch is therefore a random order of whole shards, cut into streams of
fixed lengths; each stream reads several of its shards at a time and shuffles within a buffer. The order depends on
the seed, the epoch and the stream's bounds, never on who reads it.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from instcls_tf.data.decoding import DEFAULT_READING, BadImages, Reading, decode_image
from instcls_tf.data.permutation import permute
from instcls_tf.data.source import FixedIds, classes_that_tell, digest_of_content, digest_of_ids, file_identity
from instcls_tf.data.threads import parallel_calls, without_autotuner
from instcls_tf.errors import NoSplitError, UserError, some_of

PREFIX = "records:"
INDEX_NAME = "index.json"
FORMAT = 1
_SHARDS_AT_ONCE = 4
_SHUFFLE_BUFFER = 16_384  # Encoded examples of all streams together: about 1.8 GB of ImageNet.
_SMALLEST_BUFFER = 64
# And so many bytes: photographs of a camera are 40 times as large.
_BUFFER_BYTES = 4 * 10**9
_FEWEST_BUFFERED = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """Record files, and which of their records are meant: `counts[i]` after the first `skips[i]` of `paths[i]`."""

    paths: tuple[str, ...]
    skips: np.ndarray  # [P] int64
    counts: np.ndarray  # [P] int64
    bad: BadImages

    @property
    def num_records(self) -> int:
        """All of them."""
        return int(self.counts.sum())

    def ids_digest(self) -> bytes:
        """64 bits of which record has which id."""
        files = (os.path.basename(path) for path in self.paths)
        sizes = map(_size_of, self.paths)
        about = zip(files, self.skips, self.counts, sizes)
        parts = (f"{file} {skip} {count} {size}" for file, skip, count, size in about)
        return digest_of_ids(self.num_records, (part.encode("utf-8", "surrogateescape") for part in parts))

    def read(self, begin: int, end: int, in_order: bool = False) -> Any:
        """The records `begin` to `end`: in the order of ids, or of several shards in turn.

        Returns:
          A dataset of `(serialized example, instance id int64)`.
        """
        import tensorflow as tf

        return self._pieces(tf.range(len(self.paths), dtype=tf.int64), begin, end).interleave(
            self._reader(), cycle_length=1 if in_order else _SHARDS_AT_ONCE, block_length=1
        )

    def stream(self, begin: Any, end: Any, *, seed: int, epoch: Any, num_streams: int, salt: Any) -> Any:
        """The records `begin` to `end` of an epoch's order of shards, shuffled in a buffer.

        Args:
          begin, end: int64 scalars; different streams of an epoch have different places.
          seed, epoch: of the order.
          num_streams: how many streams share the memory of buffers and the open files.
          salt: int64 scalar, different for each stream.
        """
        import tensorflow as tf

        count = len(self.paths)
        order = permute(tf.range(count, dtype=tf.int64), seed, epoch, count)
        at_once = max(1, min(_SHARDS_AT_ONCE, 4 * _SHUFFLE_BUFFER // 1024 // num_streams))
        records = self._pieces(order, begin, end).interleave(self._reader(), cycle_length=at_once, block_length=1)
        # Of this graph alone. With a global seed of 0 TensorFlow would ask whether the tensors below are 0, too.
        tf.random.set_seed(1)
        buffer = self._buffer(num_streams)
        mixed = (seed << 20) + epoch + salt * 0x1000003
        return records.shuffle(buffer, seed=mixed, reshuffle_each_iteration=False)

    def _buffer(self, num_streams: int) -> int:
        """How many records each stream holds: as many as memory has room for, by their mean size."""
        bytes_of_each = max(1.0, sum(map(_size_of, self.paths)) / max(1, self.num_records))
        that_fit = max(_FEWEST_BUFFERED, int(_BUFFER_BYTES / bytes_of_each) // num_streams)
        return min(max(_SMALLEST_BUFFER, _SHUFFLE_BUFFER // num_streams), that_fit)

    def _pieces(self, order: Any, begin: Any, end: Any) -> Any:
        """`(shard, first, last)` of the range `begin` to `end` in an order of shards."""
        import tensorflow as tf

        counts = tf.gather(tf.constant(self.counts, tf.int64), order)
        starts = tf.cumsum(counts, exclusive=True)
        first = tf.maximum(tf.cast(begin, tf.int64) - starts, 0)
        last = tf.minimum(tf.cast(end, tf.int64) - starts, counts)
        some = last > first
        return tf.data.Dataset.from_tensor_slices((order[some], first[some], last[some]))

    def _reader(self) -> Callable[[Any, Any, Any], Any]:
        import tensorflow as tf

        # As bytes: a path may be no text.
        paths, skips = tf.constant([os.fsencode(path) for path in self.paths]), tf.constant(self.skips, tf.int64)
        offsets = tf.constant(np.cumsum(self.counts) - self.counts, tf.int64)
        counts = tf.constant(self.counts, tf.int64)

        def read(shard: tf.Tensor, first: tf.Tensor, last: tf.Tensor) -> tf.data.Dataset:
            records = tf.data.TFRecordDataset(paths[shard], buffer_size=2**20).map(lambda x: (x, True))
            # A damaged file ends early: what is missing is reported, and read as images that cannot be decoded.
            missing = tf.data.Dataset.from_tensors((tf.constant(b""), False)).repeat(last - first)
            records = records.ignore_errors().skip(skips[shard] + first).take(last - first)
            records = records.concatenate(missing).take(last - first).enumerate()

            def with_id(place: tf.Tensor, record: tuple) -> tuple:
                serialized, there = record
                place += first
                report = [paths[shard], skips[shard] + counts[shard]]
                told = tf.cond(there, lambda: True, lambda: tf.numpy_function(self._damaged, report, tf.bool))
                with tf.control_dependencies([told]):
                    return tf.identity(serialized), offsets[shard] + place

            return records.map(with_id)

        return read

    def _damaged(self, path: bytes, wanted: np.int64) -> np.bool_:
        import tensorflow as tf

        name = os.fsdecode(path)
        if name not in self.bad.damage:
            # A stream may begin behind the damage: counted from the file's begin.
            readable = tf.data.TFRecordDataset(path, buffer_size=2**20).ignore_errors()
            count = int(readable.reduce(np.int64(0), lambda count, _: count + 1))
            why = f"damaged or cut off, {count} of its {wanted} records can be read"
            if is_whole := count >= int(wanted):
                why = "could not be read for a moment: the file system fails"
            self.bad.add_damage(name, f"{name}: {why if os.path.exists(path) else 'no such file'}", is_whole)
        return np.bool_(True)


@dataclasses.dataclass(frozen=True, eq=False)
class ShardedSource(FixedIds, abc.ABC):
    """Images of TFRecord shards; an id is a record's place among those of all shards that are meant, in their order."""

    name: str
    class_names: tuple[str, ...] | None
    shards: Shards
    reading: Reading
    random_access: ClassVar[Literal[False]] = False

    @property
    def bad(self) -> BadImages:
        """What could not be read so far."""
        return self.shards.bad

    @property
    def num_instances(self) -> int:
        """The number of images, and so of instance ids."""
        return self.shards.num_records

    def ids_digest(self) -> bytes:
        """64 bits of which image has which id."""
        return self.shards.ids_digest()

    @abc.abstractmethod
    def parse(self, serialized: Any, instance_id: Any) -> tuple:
        """One record as `((encoded image, name), instance id int64, label int32)`."""

    def records(self, begin: int, end: int, in_order: bool = False) -> Any:
        """The records `begin` to `end` as a dataset of `((encoded image, name), instance id int64, label int32)`.

        Args:
          begin: first record, in the order of ids.
          end: one after the last record.
          in_order: read one shard after the other, so that ids ascend; otherwise several at a time.
        """
        records = self.shards.read(begin, end, in_order)
        return without_autotuner(records.map(self.parse, num_parallel_calls=parallel_calls()))

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from `(encoded image, name)` to the image, uint8 `[H, W, 3]`, empty if it is damaged."""
        return lambda record: decode_image(record[0], record[1], self.bad, self.reading)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource(ShardedSource):
    """Shards that `prepare` has written below `root`, in the order of `paths`."""

    root: str
    paths: tuple[str, ...]

    def content_digest(self) -> str:
        """A hash of the files' names, sizes and times."""
        return digest_of_content(self, (file_identity(self.root, path) for path in self.paths))

    def parse(self, serialized: Any, instance_id: Any) -> tuple:
        """One record as `((encoded image, name), instance id int64, label int32)`."""
        import tensorflow as tf

        example = tf.io.parse_single_example(serialized, example_features())
        label = tf.cast(example["label"], tf.int32) if self.class_names else tf.constant(-1)
        return (example["image"], example["name"]), instance_id, label


def example_features() -> dict[str, Any]:
    """What is parsed of a record written by `prepare`; one that could not be read gives an empty image."""
    import tensorflow as tf

    return {
        "image": tf.io.FixedLenFeature([], tf.string, ""),
        "name": tf.io.FixedLenFeature([], tf.string, ""),
        "label": tf.io.FixedLenFeature([], tf.int64, -1),
    }


def open_records(dataset: str, split: str, reading: Reading = DEFAULT_READING) -> RecordSource:
    """Opens the shards below a folder; does not import TensorFlow.

    Args:
      dataset: `records:PATH`, PATH the `--output` of `prepare`.
      split: a split that was prepared.
      reading: how encoded images become pixels.

    Raises:
      UserError: there is no index, or a shard is missing or has another size than when it was written.
    """
    top = os.path.expanduser(dataset.removeprefix(PREFIX))
    index_path = os.path.join(top, INDEX_NAME)
    try:
        with open(index_path, encoding="utf-8-sig") as file:
            index = json.load(file)
    except OSError as error:
        raise UserError(f"--dataset={dataset}: cannot read {index_path} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--dataset={dataset}: cannot understand {index_path}") from error
    if not isinstance(index, dict):
        raise UserError(f"--dataset={dataset}: cannot understand {index_path}")
    if index.get("format") != FORMAT:
        raise UserError(f"--dataset={dataset}: {index_path} has format {index.get('format')}, wanted {FORMAT}")
    if split not in index["splits"]:
        have = ", ".join(sorted(index["splits"]))
        raise NoSplitError(f"--dataset={dataset}: no split {split!r}, wanted one of {have}")
    shards = index["splits"][split]
    _refuse_other_sizes(dataset, top, shards)
    counts = np.array([shard["records"] for shard in shards], np.int64)
    paths = tuple(shard["path"] for shard in shards)
    files = tuple(os.path.join(top, path) for path in paths)
    classes = index.get("classes_of", {}).get(split, index["class_names"])
    return RecordSource(
        dataset,
        classes_that_tell(classes),
        Shards(files, np.zeros_like(counts), counts, BadImages()),
        reading,
        top,
        paths,
    )


def _size_of(path: str) -> int:
    """In bytes; -1 if there is no such file."""
    return os.path.getsize(path) if os.path.exists(path) else -1


def _refuse_other_sizes(dataset: str, top: str, shards: list[dict]) -> None:
    """Raises one UserError for all shards that are missing or have another size than their index says."""
    wrong = []
    for shard in shards:
        path = os.path.join(top, shard["path"])
        size = _size_of(path)
        if size != shard["bytes"]:
            found = "no such file" if size < 0 else f"has {size} bytes"
            wrong.append(f"{path}: {found}, its index says {shard['bytes']} bytes")
    if wrong:
        number = f"{len(wrong)} shards are not as they were: " if len(wrong) > 1 else ""
        raise UserError(f"--dataset={dataset}: {number}{some_of(wrong, separator='; ')}")
