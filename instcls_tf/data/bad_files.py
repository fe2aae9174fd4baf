"""`WORKDIR/bad_files.txt`: the images that a run has skipped, over all workers and restarts, and the limit for them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable

import tensorflow as tf

from instcls_tf import files
from instcls_tf.data import manifest
from instcls_tf.data.decoding import FAILED
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import MachineError, UserError, shown, some_of
from instcls_tf.workdir_files import BAD_FILES_NAME

# Steps of a pass over the data between two looks at the bad files, which cost a message.
_CHECK_EVERY = 50


class BadFiles:
    """What all workers together could not read.

    Args:
      workdir: the run's folder.
      source: the images, of whose `bad` this keeps account.
      max_fraction: of the source's instances, above which the run ends; of those met since it was started or continued,
        for others may have been mended, and without those that were gone by then, which the user has been told.
      goes_on: whether the run has a past there, a checkpoint: what its list holds then counts as well. Else the list is
        removed; its images may have been mended, and all are read once more.
    """

    def __init__(self, workdir: str, source: Source, max_fraction: float, goes_on: bool = True):
        self._path = os.path.join(workdir, BAD_FILES_NAME)
        self._source, self._max_fraction = source, max_fraction
        self._reasons: dict[str, str] = {}  # by the name as it is written
        self._met: set[str] = set()  # since the start
        # Those that read images know them by their whole paths.
        root = getattr(source, "root", "")
        self._gone = {_written(os.path.join(root, path)) for path in source.changes.vanished}
        if not goes_on:
            if collectives.rank() == 0:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(self._path)
        elif files.is_there(self._path):
            text = files.content_of(self._path).decode("utf-8", "surrogateescape")
            self._remember(line for line in text.split("\n") if line)
        self._told = 0  # reasons of this worker, in the order in which they came

    def __len__(self) -> int:
        """Bad files so far."""
        return len(self._reasons)

    @staticmethod
    def is_due(done: int, total: int) -> bool:
        """Whether to check after `done` of the `total` steps of a pass over the images."""
        return done % _CHECK_EVERY == 0 or done == total

    def check(self) -> None:
        """Merges the workers' findings and writes the list; all workers call it together.

        Raises:
          UserError: a record file is damaged, or too many images are bad; on all workers alike.
          MachineError: likewise, as the file system fails.
        """
        reasons, damage = self._source.bad.reasons, self._source.bad.damage
        news = dict(itertools.islice(reasons.items(), self._told, None))
        # A few bytes in the ordinary case, in which nobody has found anything.
        counts = collectives.all_gather(tf.constant([len(news) + len(damage)], tf.int32), "bad_files").numpy()
        if not counts.any():
            return
        self._told = len(reasons)
        mine = sorted(damage.values()), sorted(map(_line, news, news.values())), [self._source.bad.is_of_machine]
        sentences, lines, of_machine = (list(itertools.chain(*parts)) for parts in zip(*workers.everybodys(mine)))
        if sentences:
            raise (MachineError if any(of_machine) else UserError)(f"--dataset={self._source.name}: {sentences[0]}")
        self._remember(lines)
        self._met |= {line.partition("\t")[0] for line in lines} - self._gone
        if collectives.rank() == 0:
            text = "".join(f"{name}\t{reason}\n" for name, reason in sorted(self._reasons.items()))
            files.write(self._path, text.encode("utf-8", "surrogateescape"))
        num_there = self._source.num_instances - len(self._gone)
        if len(self._met) > self._max_fraction * num_there:
            names = some_of(map(shown, sorted(self._met)))
            failed = sum(self._reasons[name] == FAILED for name in self._met)
            is_of_machine = len(self._met) - failed <= self._max_fraction * num_there
            raise (MachineError if is_of_machine else UserError)(
                f"--max_bad_fraction={self._max_fraction}: {len(self._met)} of {num_there} images cannot be read, see"
                f" {self._path}: {names}"
            )

    def _remember(self, lines: Iterable[str]) -> None:
        # Once per image: another worker, or another day, may have met it for another reason.
        for line in lines:
            name, _, reason = line.partition("\t")
            self._reasons.setdefault(name, reason)


def _line(name: str, reason: str) -> str:
    return f"{_written(name)}\t{reason}"


def _written(name: str) -> str:
    return os.fsdecode(manifest.escape(os.fsencode(name)))
