"""What is said of images that are left out because they cannot be read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from instcls_tf.data.names import names_of
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import shown, some_of
from instcls_tf.progress import Progress

_NAMED = 10


def tell_of_unreadable(source: Source, ids: np.ndarray, progress: Progress) -> None:
    """Says how many images of a source are left out, and names the first of them; all workers together.

    Those that a run's list of its images has and its folder has not any more are told apart.

    Args:
      source: the images.
      ids: `[n]` of those that could be read, on all workers the same.
      progress: where it is said; nothing is if all could be read.
    """
    missing = np.setdiff1d(np.arange(source.num_instances), ids)
    if not len(missing):
        return
    reasons = workers.merged(source.bad.reasons)
    if collectives.rank() == 0:
        gone = set(source.changes.vanished)
        names = names_of(source, missing) if gone else []
        is_gone = np.array([name in gone for name in names] or [False] * len(missing), bool)
        _tell(source, missing[is_gone], "are not there any more", {}, progress)
        _tell(source, missing[~is_gone], "cannot be read", reasons, progress)


def _tell(source: Source, ids: np.ndarray, what: str, reasons: Mapping[str, str], progress: Progress) -> None:
    if not len(ids):
        return
    names = names_of(source, ids[: _NAMED + 1])
    # A folder's images are known to those that read them by their whole paths.
    paths = [os.path.join(getattr(source, "root", ""), name) for name in names]
    known = {name: reasons[path] for name, path in zip(names, paths) if path in reasons}
    count = f"{len(ids)} of {source.num_instances} image(s) of {source.name}"
    progress.say(f"warning: {count} {what} and are left out: {named(names, known)}")


def named(names: Sequence[str], reasons: Mapping[str, str]) -> str:
    """The first ten of some names, each with the reason that is known, on one line."""
    said = (f"{shown(name)}: {shown(reasons[name])}" if name in reasons else shown(name) for name in names)
    return some_of(said, _NAMED)
