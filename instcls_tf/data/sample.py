"""A bounded number of a source's images, spread evenly over it, always the same ones."""

from __future__ import annotations

import numpy as np

from instcls_tf.data.labelled import EncodedImages, take
from instcls_tf.data.source import Source, StreamedSource

# Of record files: places at which some records are read one after the other, in the place of all records in between.
_PLACES = 16
# Of which encoded images are held in memory at once, bytes: 10,000 of ImageNet, or 200 photographs of 12 megapixels.
_MOST_BYTES = 10**9


def sample(source: Source, most: int) -> Source:
    """At most so many images of a source, with ids from 0; the source itself if it has no more.

    Of records there are fewer if they are large: those that are taken stay in memory, encoded.

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
    """A stream is read at a few places only: all of it may be hundreds of gigabytes.

    Each place has an equal share of the memory, so that large images make the sample smaller, not less even; the same
    on all workers. A place gives one image at least.
    """
    places = min(_PLACES, most)
    lengths = np.diff(_spread(most, places), append=most)
    found: list[tuple] = []
    for begin, length in zip(_spread(source.num_instances, places), lengths):
        records, size = source.records(int(begin), int(begin + length), in_order=True), 0
        for record, _, label in records.as_numpy_iterator():
            size += len(record[0])
            if size > _MOST_BYTES // places and size > len(record[0]):
                break
            found.append((*record, label))
    encoded, names, labels = zip(*found)
    own = np.array(labels, np.int32)
    return EncodedImages(source.name, source.class_names, own, encoded, names, source.bad, source.reading)
