"""A bounded number of a source's images, spread evenly over it, always the same ones."""

from __future__ import annotations

import numpy as np

from instcls_tf.data.labelled import EncodedImages, take
from instcls_tf.data.source import Source, StreamedSource

# Of record files: places at which some records are read one after the other, in the place of all records in between.
_PLACES = 16


def sample(source: Source, most: int) -> Source:
    """At most so many images of a source, with ids from 0; the source itself if it has no more.

    Args:
      source: the images, in the order of ids: of a folder per class all classes are there in their shares.
      most: how many.
    """
    if source.num_instances <= most:
        return source
    if source.random_access:
        return take(source, _spread(source.num_instances, most))
    return _of_records(source, most)


def _spread(total: int, count: int) -> np.ndarray:
    """`count` of the integers below `total`."""
    return np.arange(count, dtype=np.int64) * total // count


def _of_records(source: StreamedSource, most: int) -> EncodedImages:
    """A stream is read at a few places only: all of it may be hundreds of gigabytes."""
    places = min(_PLACES, most)
    lengths = np.diff(_spread(most, places), append=most)
    found: list[tuple] = []
    for begin, length in zip(_spread(source.num_instances, places), lengths):
        records = source.records(int(begin), int(begin + length), in_order=True)
        found += [(*record, label) for record, _, label in records.as_numpy_iterator()]
    encoded, names, labels = zip(*found)
    own = np.array(labels, np.int32)
    return EncodedImages(source.name, source.class_names, own, encoded, names, source.bad, source.reading)
