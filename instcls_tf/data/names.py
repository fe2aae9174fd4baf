"""What people call the images of a source: paths below a folder, a dataset's own names, or else their ids."""

from __future__ import annotations

import os

import numpy as np

from instcls_tf.data.source import Source


def names_of(source: Source, ids: np.ndarray) -> list[str]:
    """The names of some images; of record files they are read from the records.

    Args:
      source: the images.
      ids: `[n]` instance ids.

    Returns:
      Of a folder's images the path below the folder of their split, of TFDS's and of record files' the name that the
      record has there, of others the id. Bytes that are no UTF-8 are as in Python's names of files.
    """
    if source.random_access:
        return [str(source.name_of(int(instance_id))) for instance_id in ids]
    found: dict[int, str] = {}
    records = source.records(0, source.num_instances, in_order=True).map(
        lambda record, place, label: (record[1], place)
    )
    for name, place in records.as_numpy_iterator():
        found[int(place)] = os.fsdecode(name)
    return [found.get(int(instance_id), str(int(instance_id))) for instance_id in ids]
