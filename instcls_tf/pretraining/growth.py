"""A run on a set that has grown or shrunk: what it takes over from the run on the earlier state, `--extend_from`.

Images are known by their bytes (`data.contents`), so that files may be moved and renamed. Known images keep their class
weight and its momentum, to the last bit where these are kept in as many digits, and the encoder its weights, BN
statistics and momentum. New images get the projection that this encoder has for them, as the contrastive prior gives
those of a random network; those that are gone lose their class. Steps, learning rate and warm-up begin anew.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf import files, stamps
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.classifier.table import Table
from instcls_tf.config import PretrainConfig
from instcls_tf.data import contents
from instcls_tf.data.source import Source
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError, naming, shown
from instcls_tf.methods.class_tables import read_rows
from instcls_tf.methods.instance import CLASS_MOMENTUM_KEY, CLASS_WEIGHTS_KEY
from instcls_tf.pretraining import agreement
from instcls_tf.pretraining.state import Run
from instcls_tf.progress import OnProgress, Progress
from instcls_tf.run import checkpoint, checkpoint_choice
from instcls_tf.run.parts import CHUNK_ROWS, refuse_not_finite, replicated_variables
from instcls_tf.run.workdir import load_run
from instcls_tf.workdir_files import CONTENTS_NAME


class Growth(NamedTuple):
    """What a run takes over."""

    prefix: str  # of the other run's newest checkpoint
    known: np.ndarray  # int64 [N]: an image's id in that run, -1 if it is new
    num_before: int  # images of that run

    @property
    def is_new(self) -> np.ndarray:
        """Which images that run did not have, bool `[N]`."""
        return self.known < 0

    def __str__(self) -> str:
        new = int(self.is_new.sum())
        kept = len(self.known) - new
        return (
            f"from {self.prefix}: {kept} images are known and keep weight and momentum, {new} are new,"
            f" {self.num_before - kept} of its {self.num_before} are gone"
        )


def contents_of(source: Source, progress: OnProgress) -> np.ndarray:
    """The hashes of all images, uint64 `[N, 2]`; each worker reads its share, all together.

    Args:
      source: the images.
      progress: of reading them.
    """
    own = contents.hashes_of(source, *collectives.own_bounds(source.num_instances), progress)
    return collectives.all_gather(tf.constant(own.view(np.int64)), "contents").numpy().view(np.uint64)


def note_of_copies(hashes: np.ndarray, workdir: str) -> str:
    """What to say of images that are there twice; nothing if none is.

    Args:
      hashes: of all images, uint64 `[N, 2]`.
      workdir: of the run.
    """
    copies = contents.copies_among(hashes)
    if not copies:
        return ""
    are = "is a copy of another" if copies == 1 else "are copies of others"
    return (
        f"{copies:,} of {len(hashes):,} images {are}, byte for byte, and each is a class of its own: python -m"
        f" scripts.duplicates --workdir={shown(workdir)} lists them"
    )


def find(config: PretrainConfig, hashes: np.ndarray, progress: Progress) -> Growth:
    """What `--extend_from` has of these images; all workers together.

    Args:
      config: the recipe.
      hashes: of its images, uint64 `[N, 2]`.
      progress: of hashing the other run's images, where it has not kept their hashes.

    Raises:
      UserError: the other run has no checkpoint, no class weights yet, knows none of the images, or is not known by the
        bytes of its images.
      MachineError: its folder or its newest checkpoint cannot be read.
    """
    other = str(config.extend_from)
    prefix = _newest_of(other)
    agreement.refuse_other_checkpoints(prefix)
    before = _contents_before(other, prefix, progress)
    agreement.refuse_different_facts(f"--extend_from={other}", hashlib.sha256(before.tobytes()).hexdigest()[:16])
    known = contents.known_ids(before, hashes)
    if (known < 0).all():
        raise UserError(
            f"--extend_from={other}: knows none of the {len(known)} images of --dataset={config.dataset}, wanted a run"
            f" on an earlier state of the same set"
        )
    workers.all_or_none(lambda: _refuse_no_weights(other, prefix, int(known.max())))
    return Growth(prefix, known, len(before))


def _refuse_no_weights(other: str, prefix: str, row: int) -> None:
    """All class weights are 0 in the epochs of `--contrast_epochs`."""
    with checkpoint.damage_is_a_user_error(prefix):
        weights = read_rows(prefix, CLASS_WEIGHTS_KEY, row, row + 1)
    if not weights.numpy().any():
        raise UserError(
            f"--extend_from={other}: its classes have no weights yet, they get them after its --contrast_epochs: train"
            f" it further, or take its encoder alone with --init={other}"
        )


def _newest_of(other: str) -> str:
    """The checkpoint that rank 0 takes."""

    with naming("extend_from"):
        step = workers.of_rank_0(lambda: checkpoint_choice.step_of(checkpoint.newest(other)))
    return checkpoint_choice.prefix_of(other, step)


def _contents_before(other: str, prefix: str, progress: Progress) -> np.ndarray:
    """The hashes of the images of the other run, one for each of its classes."""
    path = contents.contents_path(other)
    total, _ = _shape_of(prefix, CLASS_WEIGHTS_KEY)
    if workers.of_rank_0(lambda: files.is_there(path)):
        before = workers.all_or_none(lambda: contents.read(path))
    else:
        progress.say(f"--extend_from={other}: has no {CONTENTS_NAME}, its images are read again")
        source = workers.all_or_none(lambda: _images_of(other))
        # Files that were added since have ids behind those of its classes.
        before = contents_of(source, progress)[:total]
    if len(before) != total:
        raise UserError(f"--extend_from={other}: {len(before)} images are there for the {total} classes of {prefix}")
    return before


def _images_of(other: str) -> Source:
    try:
        return open_training_source(load_run(other), workdir=other)
    except UserError as error:
        raise type(error)(f"--extend_from={other}: its images are not known any more: {error}") from error


def _shape_of(prefix: str, key: str) -> list[int]:
    """Of a tensor in a checkpoint that holds it on all workers alike."""
    with checkpoint.damage_is_a_user_error(prefix):
        return checkpoint.shapes_of(prefix)[key]


def take_over(run: Run, classifier: ShardedClassifier, growth: Growth) -> None:
    """Reads the encoder, and the class weights and momentum of this worker's known images, bit by bit.

    Args:
      run: before its first step; receives the encoder.
      classifier: of the run; new images get Gaussian weights, for those that cannot be read, and no momentum.
      growth: from where, and which images.

    Raises:
      UserError: the checkpoint is damaged, or is not of such a run.
    """
    stamps.stamp("taking over the earlier run")
    classifier.initialize_gaussian()
    workers.all_or_none(lambda: _read(run, classifier, growth))
    # As every save demands it: what was read is the same everywhere.
    agreement.refuse_different_weights(replicated_variables(run.replicated()), 0)


def _read(run: Run, classifier: ShardedClassifier, growth: Growth) -> None:
    with checkpoint.damage_is_a_user_error(growth.prefix):
        run.replicated().read(growth.prefix).assert_consumed()
        run.optimizer.iterations.assign(0)
        _read_known(growth, CLASS_WEIGHTS_KEY, classifier.classes.weights, classifier)
        _read_known(growth, CLASS_MOMENTUM_KEY, classifier.classes.momentum, classifier)
    refuse_not_finite(run.replicated(), run.sliced(with_lists=False), growth.prefix)


def _read_known(growth: Growth, key: str, table: Table, classifier: ShardedClassifier) -> None:
    """Reads the rows of this worker's known images, some of the earlier run's rows at a time."""
    total, _ = _shape_of(growth.prefix, key)
    before = growth.known[classifier.begin : classifier.end]
    mine = np.flatnonzero(before >= 0)
    mine = mine[np.argsort(before[mine])]
    for first in range(0, total, CHUNK_ROWS):
        stamps.go_on()
        last = min(first + CHUNK_ROWS, total)
        rows = mine[np.searchsorted(before[mine], first) : np.searchsorted(before[mine], last)]
        if len(rows):
            values = read_rows(growth.prefix, key, first, last)
            table.write(tf.constant(rows, tf.int32), tf.gather(values, before[rows] - first))
