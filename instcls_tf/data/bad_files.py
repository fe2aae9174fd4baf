"""`WORKDIR/bad_files.txt`: the images that a run has skipped, over all workers and restarts, and the limit for them."""

from __future__ import annotations

import itertools
import json
import os
from typing import Callable

import numpy as np
import tensorflow as tf

from instcls_tf import collectives
from instcls_tf.data import manifest
from instcls_tf.data.sources import Source
from instcls_tf.errors import UserError

BAD_FILES_NAME = "bad_files.txt"
_NAMED = 10
# Steps of a pass over the data between two looks at the bad files, which cost a message.
_CHECK_EVERY = 50


class BadFiles:
    """What all workers together could not read.

    Args:
      workdir: the run's folder; what its list holds already counts as well.
      source: the images, of whose `bad` this keeps account.
      max_fraction: of the source's instances, above which the run ends.
    """

    def __init__(self, workdir: str, source: Source, max_fraction: float):
        self._path = os.path.join(workdir, BAD_FILES_NAME)
        self._source, self._max_fraction = source, max_fraction
        self._lines: set[str] = set()
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                self._lines = set(file.read().split("\n")) - {""}
        self._told = 0

    def __len__(self) -> int:
        """Bad files so far."""
        return len(self._lines)

    def check(self) -> None:
        """Merges the workers' findings and writes the list; all workers call it together.

        Raises:
          UserError: a record file is damaged, or too many images are bad; on all workers alike.
        """
        reasons, damage = self._source.bad.reasons, self._source.bad.damage
        news = len(reasons) + len(damage)
        # A few bytes in the ordinary case, in which nobody has found anything.
        counts = collectives.all_gather(tf.constant([news - self._told], tf.int32), "bad_files").numpy()
        if not counts.any():
            return
        self._told = news
        damage, lines = self._merged(sorted(damage.values()), sorted(map(_line, reasons, reasons.values())))
        if damage:
            raise UserError(f"--dataset={self._source.name}: {damage[0]}")
        self._lines.update(lines)
        if collectives.rank() == 0:
            with open(self._path + ".new", "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                file.writelines(line + "\n" for line in sorted(self._lines))
            os.replace(self._path + ".new", self._path)
        if len(self._lines) > self._max_fraction * self._source.num_instances:
            names = ", ".join(line.partition("\t")[0] for line in sorted(self._lines)[:_NAMED])
            raise UserError(
                f"--max_bad_fraction={self._max_fraction}: {len(self._lines)} of {self._source.num_instances} images"
                f" cannot be read, see {self._path}: {names}"
            )

    def checking(self, report: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
        """A report of progress (stage, steps done, steps in all), which all workers make alike, with checks in it."""

        def report_and_check(stage: str, done: int, total: int) -> None:
            report(stage, done, total)
            if done % _CHECK_EVERY == 0 or done == total:
                self.check()

        return report_and_check

    def _merged(self, *parts: list[str]) -> list[list[str]]:
        text = "\n".join(map(json.dumps, parts)) + "\n"
        gathered = collectives.all_gather(tf.constant(np.frombuffer(text.encode(), np.uint8)), "bad_file_lists")
        found = [json.loads(line) for line in gathered.numpy().tobytes().decode().splitlines()]
        return [list(itertools.chain(*found[part :: len(parts)])) for part in range(len(parts))]


def _line(name: str, reason: str) -> str:
    return f"{os.fsdecode(manifest.escape(os.fsencode(name)))}\t{reason}"
