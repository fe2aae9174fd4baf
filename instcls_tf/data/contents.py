"""What images are, whatever they are called: a hash of each, by which a run on a set that has grown knows them.

BLAKE2b over the bytes as they are stored, 128 bits: two different images of a set as large as the web's have the same
hash with a chance of 1e-18. An image that cannot be read has 0, which no image knows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from instcls_tf import files, stamps
from instcls_tf.data.source import RandomAccessSource, Source
from instcls_tf.data.threads import parallel_calls, without_autotuner
from instcls_tf.errors import UserError
from instcls_tf.progress import OnProgress, no_progress
from instcls_tf.workdir_files import CONTENTS_NAME

_BYTES = 16
_AT_ONCE, _RECORDS_AT_ONCE = 1024, 64


def contents_path(workdir: str) -> str:
    """Where a run keeps the hashes of its images."""
    return os.path.join(workdir, CONTENTS_NAME)


def hashes_of(source: Source, begin: int, end: int, progress: OnProgress = no_progress) -> np.ndarray:
    """The hashes of the images `begin` to `end` in the order of ids, uint64 `[n, 2]`; 0 where one cannot be read.

    Args:
      source: the images.
      begin: the first id.
      end: one after the last id.
      progress: called with a stage's name, images done and images in all.
    """
    hashes = np.zeros([end - begin, 2], np.uint64)
    done = 0
    for digests in _digests(source, begin, end):
        found = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
        hashes[done : done + len(found)] = found
        done += len(found)
        progress("contents of the images", done, end - begin)
    return hashes


def _digests(source: Source, begin: int, end: int) -> Iterator[list[bytes]]:
    """The hashes of some images at a time, in the order of ids."""
    if source.random_access:
        content_of = source.content_of
        with ThreadPoolExecutor(parallel_calls()) as pool:
            for first in range(begin, end, _AT_ONCE):
                ids = range(first, min(first + _AT_ONCE, end))
                yield list(pool.map(lambda instance_id: _digest(content_of(instance_id)), ids))
        return
    encoded = source.records(begin, end, in_order=True).map(lambda record, instance_id, label: record[0])
    for batch in without_autotuner(encoded.batch(_RECORDS_AT_ONCE)).as_numpy_iterator():
        yield [_digest(content) for content in batch]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_BYTES).digest() if content else bytes(_BYTES)


def exchanged(source: RandomAccessSource, ids: np.ndarray, before: np.ndarray) -> Iterator[tuple[int, int]]:
    """Which of some images are now what another one was, as pairs of ids.

    Args:
      source: the images, read at random.
      ids: whose content is looked at.
      before: hashes of all images at an earlier time, uint64 `[N, 2]`.
    """
    ids = ids[ids < len(before)]
    now = np.frombuffer(b"".join(_digest_now(source, i) for i in ids.tolist()), np.uint64).reshape(-1, 2)
    differs = (now != before[ids]).any(axis=1) & now.any(axis=1)
    ids, now = ids[differs], now[differs]
    if not len(ids):  # as nearly always: all hashes need not be sorted
        return
    _, image = np.unique(_keys(np.concatenate([before, now])), return_inverse=True)
    image = image.ravel()
    first_of = np.full([image.max(initial=-1) + 1], -1)
    first_of[image[: len(before)][::-1]] = np.arange(len(before))[::-1]
    for instance_id, other in zip(ids.tolist(), first_of[image[len(before) :]].tolist()):
        if other >= 0:
            yield instance_id, other


def _digest_now(source: RandomAccessSource, instance_id: int) -> bytes:
    stamps.go_on()
    return _digest(source.content_of(instance_id))


def write(path: str, hashes: np.ndarray) -> None:
    """Writes the hashes of all images: all of them or, whatever happens meanwhile, none.

    Raises:
      UserError: the file cannot be written.
      MachineError: likewise, as the file system fails.
    """
    try:
        with files.whole_file(path) as file:
            np.save(file, hashes)
    except OSError as error:  # of NumPy without a `strerror`
        raise files.error_of(error, f"{path}: cannot be written ({error.strerror or error})") from error


def read(path: str) -> np.ndarray:
    """The hashes that `write` has written, uint64 `[N, 2]`.

    Raises:
      UserError: the file is damaged.
      MachineError: the file system fails.
    """
    try:
        hashes = files.patiently(lambda: np.load(path, allow_pickle=False), path)
    except UserError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot read the hashes of the images ({error})") from error
    if hashes.dtype != np.uint64 or hashes.ndim != 2 or hashes.shape[1] != 2:
        raise UserError(f"{path}: damaged, wanted two 64-bit numbers of each image")
    return hashes


def _keys(hashes: np.ndarray) -> np.ndarray:
    """`[N, 2]` as N values that can be compared."""
    return np.ascontiguousarray(hashes).view("u8,u8").ravel()


def known_ids(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """For each image of a set its id in an earlier one, int64 `[N]`, -1 where it was not there.

    Of copies of one image the first is the first one's successor, the second the second one's, and so on.

    Args:
      before: hashes of the earlier set, uint64 `[M, 2]`.
      now: hashes of this set, uint64 `[N, 2]`.
    """
    _, image = np.unique(_keys(np.concatenate([before, now])), return_inverse=True)
    image = image.ravel()
    copies = np.concatenate([_copy_number(image[: len(before)]), _copy_number(image[len(before) :])])
    wanted = image * (copies.max(initial=0) + 1) + copies
    earlier, present = wanted[: len(before)], wanted[len(before) :]
    order = np.argsort(earlier)
    place = np.minimum(np.searchsorted(earlier[order], present), max(0, len(before) - 1))
    ids = order[place] if len(before) else np.zeros(len(now), np.int64)
    found = (earlier[ids] == present) & now.any(axis=1) if len(before) else np.zeros(len(now), bool)
    return np.where(found, ids, -1)


def copies_among(hashes: np.ndarray) -> int:
    """How many images are copies of one before them, byte for byte.

    Args:
      hashes: of all images, uint64 `[N, 2]`.
    """
    ordered = hashes[np.lexsort(hashes.T)]
    same = (ordered[1:] == ordered[:-1]).all(axis=1)
    return int(np.sum(same & ordered[1:].any(axis=1)))


def _copy_number(image: np.ndarray) -> np.ndarray:
    """How many of the same image come before each, int64 `[n]`."""
    order = np.argsort(image, kind="stable")
    sorted_images = image[order]
    first = np.searchsorted(sorted_images, sorted_images, "left")
    numbers = np.empty(len(image), np.int64)
    numbers[order] = np.arange(len(image)) - first
    return numbers
