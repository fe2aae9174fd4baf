"""What is checked before anything is touched or loaded; answers a user's mistake at once."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from instcls_tf import flagfiles
from instcls_tf.checks import refuse_idle
from instcls_tf.config import INSTANCE, MIXED_FLOAT16, PretrainConfig
from instcls_tf.data.folder import FolderSource, of_files
from instcls_tf.data.labelled import splits_of_run
from instcls_tf.data.source import Source
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.errors import UserError, naming
from instcls_tf.files import is_there
from instcls_tf.initial.kinds import kind_of
from instcls_tf.run.workdir import can_continue, has_checkpoints, holds_this_run, load_run, with_length_begun

# Settings that name a file or a folder; the dataset's own paths are expanded where it is opened.
_PATHS = ("workdir", "data_dir", "init", "extend_from", "cache")
# Of a run's images, more are not taken away by hand.
_MOST_VANISHED = 0.5
_OF_THE_NETWORK = ("method", "encoder", "width_multiplier", "stem", "mlp_head", "embedding_size")


def recipe_of_call(config: PretrainConfig | None, preset: str | None, settings: dict[str, Any]) -> PretrainConfig:
    """The recipe that `pretrain` is called with: a whole one, or single settings, which win over it or over a preset.

    In its paths `~` is expanded, as in the command's.

    Raises:
      UserError: there is a recipe and a preset, or no such preset or setting; names the nearest. Or the workdir has a
        run whose `run.flags` cannot be understood.
    """
    flagfiles.refuse_unknown(PretrainConfig, settings)
    if config is not None and preset is not None:
        raise UserError(f"preset {preset!r}: comes in the place of a config, wanted one of them")
    if config is not None:
        config = config.replace(**flagfiles.with_length(settings))
    else:
        config = PretrainConfig.from_flagfile(preset, **settings) if preset else PretrainConfig(**settings)
    paths = {name: getattr(config, name) for name in _PATHS}
    config = config.replace(**{name: os.path.expanduser(path) for name, path in paths.items() if path is not None})
    return with_length_begun(config)


def open_training_data(config: PretrainConfig, source: Source | None = None, given: Collection[str] = ()) -> Source:
    """Checks a recipe, opens its training images and makes sure that the workdir is free or holds this very run.

    Nothing is written, and TensorFlow is imported only if TFDS has to be asked.

    Args:
      config: the recipe.
      source: its training images if they are open already; they are checked all the same.
      given: names of the settings that do not come from a preset or a flagfile.

    Returns:
      The images, with the instance ids that they have in the run.

    Raises:
      UserError: one sentence naming the flag, its value and what is wanted.
    """
    _, num_workers = launched_rank_and_size() or (0, 1)
    continues = can_continue(config.workdir)
    config.validate(begins=not continues)
    if continues:
        _refuse_more_workers_than_groups(config, num_workers)
    else:
        refuse_idle(config, given)
    config.validate(num_workers, begins=not continues)
    # Before the data: a manifest in the workdir is of the run that it belongs to.
    resuming = holds_this_run(config)
    has_past = resuming and has_checkpoints(config.workdir)
    source = open_training_source(config, begins=not has_past) if source is None else source
    if source.name != config.dataset:
        raise UserError(f"--dataset={config.dataset}: must be that of the images, which are those of {source.name}")
    config.validate_with_data(source.num_instances, num_workers, begins=not continues)
    if config.cache:
        of_files(source, config.cache)
    if config.online_knn_every:
        _refuse_without_labels(config)
    if config.init and not has_past:
        kind_of(config.init)
    if config.window(source.num_instances) is not None and not source.random_access:
        raise UserError(
            f"--dataset={config.dataset}: the window of --method=pic slides over images that are read in any order, and"
            f" these are record files: add --pic_window=0 for ordinary epochs"
        )
    if resuming:
        _refuse_other_files(config, source)
    else:
        _refuse_images_in_workdir(config, source)
        if config.extend_from is not None:
            _refuse_another_network(config, config.extend_from)
    return source


def _refuse_without_labels(config: PretrainConfig) -> None:
    """Before hours are spent on a cache or a prior."""
    try:
        splits_of_run(config)
    except UserError as error:
        raise type(error)(f"{error}; --online_knn_every={config.online_knn_every} judges by both splits") from error


def _refuse_more_workers_than_groups(config: PretrainConfig, num_workers: int) -> None:
    """A run that has a checkpoint keeps its BN groups, of which each worker has one at least."""
    run = load_run(config.workdir)
    if run.groups_per_batch < num_workers:
        raise UserError(
            f"--workdir={config.workdir}: its run has {run.groups_per_batch} BN group(s) in a batch"
            f" (--micro_batch={run.micro_batch} of --batch_size={run.batch_size}), one at least for each worker: wanted"
            f" at most {run.groups_per_batch} workers, not {num_workers}, to continue it"
        )


def _refuse_images_in_workdir(config: PretrainConfig, source: Source) -> None:
    """A folder with a run is no part of a dataset: from then on its images would be missing."""
    if source.holds_images_in(config.workdir):
        raise UserError(
            f"--workdir={config.workdir}: holds images of --dataset={config.dataset}, wanted a folder without any,"
            f" inside the dataset's or elsewhere"
        )


def _refuse_other_files(config: PretrainConfig, source: Source) -> None:
    """A run that has a checkpoint has a class for each of the files it began with, and no more; some may be gone."""
    if not has_checkpoints(config.workdir):
        return
    path = source.manifest_path(config.workdir)
    if path is not None and not is_there(path):
        raise UserError(f"{path}: is missing, and with it the ids of the images: without it this run cannot go on")
    added, vanished = source.changes.added, source.changes.vanished
    another = (
        f"begin another one in another folder, with --{'extend_from' if config.method == INSTANCE else 'init'}="
        f"{config.workdir} to go on from this one"
    )
    if added:
        before = source.num_instances - len(added)
        raise UserError(
            f"--dataset={config.dataset}: {added[0]!r} was added after the run in --workdir={config.workdir} began with"
            f" {before} images, now there are {source.num_instances}: take the new files away to continue the run, or"
            f" {another}"
        )
    gone = (
        f"--dataset={config.dataset}: {len(vanished)} of the {source.num_instances} images of the run in"
        f" --workdir={config.workdir} are gone"
    )
    bring = "bring them back to continue the run (is a disk not mounted?)"
    if len(vanished) > _MOST_VANISHED * source.num_instances:
        raise UserError(f"{gone}, such as {vanished[0]!r}: {bring}, or {another}")
    folder = _folder_that_is_gone(source, config.max_bad_fraction)
    if folder is not None:
        enough = math.ceil(100 * len(vanished) / source.num_instances) / 100
        raise UserError(
            f"{gone}, among them all below {folder!r}: {bring}, give --max_bad_fraction={enough} to go on without them,"
            f" or {another}"
        )


def _folder_that_is_gone(source: Source, max_fraction: float) -> str | None:
    """A folder none of whose images is there any more, of more than this fraction of all; of several the outermost."""
    vanished = source.changes.vanished
    if not isinstance(source, FolderSource) or len(vanished) / source.num_instances <= max_fraction:
        return None
    had, gone = (
        Counter(folder for path in paths for folder in _folders_of(path)) for paths in (source.paths, vanished)
    )
    whole = (folder for folder, count in gone.items() if count == had[folder])
    return next((folder for folder in whole if gone[folder] / source.num_instances > max_fraction), None)


def _folders_of(path: str) -> Iterator[str]:
    """Those that a path leads through, the outermost first."""
    return itertools.accumulate(path.split(os.sep)[:-1], os.path.join)


def _refuse_another_network(config: PretrainConfig, other: str) -> None:
    """What is taken over from `--extend_from` must fit."""
    with naming("extend_from"):
        theirs = load_run(other)
    for name in (*_OF_THE_NETWORK, "precision"):
        before, now = getattr(theirs, name), getattr(config, name)
        if before != now and (name != "precision" or MIXED_FLOAT16 in (before, now)):  # which has a loss scale
            raise UserError(
                f"--extend_from={other}: is a run with --{name}={before}, this one has --{name}={now}: wanted the same"
            )
