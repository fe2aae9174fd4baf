"""What is checked before anything is touched or loaded; answers a user's mistake at once."""

from __future__ import annotations

import os

from instcls_tf.config import PretrainConfig, refuse_other_recipe
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.sources import Source, open_training_source
from instcls_tf.errors import UserError
from instcls_tf.launcher import launched_rank_and_size


def open_training_data(config: PretrainConfig) -> Source:
    """Checks a recipe, opens its training images and makes sure that the workdir is free or holds this very run.

    Nothing is written, and TensorFlow is imported only if TFDS has to be asked.

    Raises:
      UserError: one sentence naming the flag, its value and what is wanted.
    """
    _, num_workers = launched_rank_and_size() or (0, 1)
    config.validate(num_workers)
    # Before the data: a manifest in the workdir is of the run that it belongs to.
    resuming = refuse_other_recipe(config)
    source = open_training_source(config)
    config.validate_with_data(source.num_instances, num_workers)
    if resuming:
        _refuse_added_files(config, source)
    return source


def _refuse_added_files(config: PretrainConfig, source: Source) -> None:
    """A run that has a checkpoint has a class for each of the files it began with, and no more."""
    has_checkpoint = os.path.exists(os.path.join(config.workdir, "checkpoints", "checkpoint"))
    if isinstance(source, FolderSource) and source.changes.added and has_checkpoint:
        before = source.num_instances - len(source.changes.added)
        raise UserError(
            f"--dataset={config.dataset}: {source.changes.added[0]!r} was added after the run in"
            f" --workdir={config.workdir} began with {before} images, now there are {source.num_instances}: take the"
            f" new files away to continue the run, or begin another one in another folder"
        )
