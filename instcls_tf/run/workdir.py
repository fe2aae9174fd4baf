"""The folder of a run: which recipe it holds, and whether a run may begin or go on there. No TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Callable
from typing import Any

from instcls_tf import files, flagfiles
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.workdir_files import (
    BAD_FILES_NAME,
    CHECKPOINT_PREFIX,
    CHECKPOINTS_NAME,
    CONTENTS_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    PAGE_NAME,
    RECORD_NAME,
    RUN_FLAGS_NAME,
    STARTING_WEIGHTS_NAME,
)

# What may differ between a run and its continuation; everything else is the run's recipe.
NOT_RECIPE = (
    "workdir",
    "data_dir",
    "max_steps",
    "log_every",
    "checkpoint_every",
    "max_bad_fraction",
    "online_knn_every",
    "gauge_every",
    "report",
    "stall_timeout",
    "keep_checkpoints",
    "recompute",  # the result is the same
    "class_passes",  # the same up to rounding
    "extend_epochs",  # may only grow
)
# Of these, what its recipe follows, for those who replay it or look at it later: how long the run is, where its images
# lie, and how many of them may be unreadable.
_FOLLOWED = ("extend_epochs", "max_steps", "data_dir", "max_bad_fraction")
# Of the recipe, what a longer run has otherwise, and one that goes on may not: it is extended instead.
_LENGTH = ("epochs", "exposures")
# Of the recipe, what names a place, which has many names: this is compared with `run.flags` alone.
BEGUN_FROM = ("init", "extend_from")
# Marks the line of a run.flags with the run's id: a comment, so that the file is a flagfile still.
_RUN_ID = "# run "
# What a run leaves that would be taken for its successor's.
_OF_THE_RUN = (MANIFEST_NAME, CONTENTS_NAME, BAD_FILES_NAME)
# What a run replaces besides, once it has begun: where none has, they are another program's.
_REPLACED = (*_OF_THE_RUN, METRICS_NAME, STARTING_WEIGHTS_NAME)
# What commands leave in a workdir: their results, and in which order these are told.
RESULTS = (
    *("report", "knn_eval", "knn_eval_pixels", "knn_eval_files", "linear_eval", "linear_eval_files"),
    *("finetune", "detect", "similarity", "correlation"),
)
# And what would be shown as its successor's; it may be a user's where no run has begun.
_RESULTS = (STARTING_WEIGHTS_NAME, PAGE_NAME, *(f"{name}.json" for name in RESULTS))
# The last line that a run.flags had for certain before files ended with a mark.
_ONCE_LAST = "checkpoint_every"


def run_flags_path(workdir: str) -> str:
    """Where a run keeps its recipe; a `~` is the home folder here and below, for who gives a workdir from Python."""
    return os.path.join(os.path.expanduser(workdir), RUN_FLAGS_NAME)


def checkpoint_folder(workdir: str) -> str:
    """Where a run keeps its checkpoints."""
    return os.path.join(os.path.expanduser(workdir), CHECKPOINTS_NAME)


def has_checkpoints(workdir: str) -> bool:
    """Whether there is anything of a checkpoint, whole or not.

    Data without index, manifest and record are none: a first save was ended when it gave its files their names.

    Raises:
      UserError: the folder of the checkpoints is not to be read.
      MachineError: the file system fails.
    """
    names = files.names_in(checkpoint_folder(workdir))
    ends = ("",) if RECORD_NAME in names else (".index", ".json")
    return any(name.startswith(CHECKPOINT_PREFIX) and name.endswith(ends) for name in names)


def can_continue(workdir: str) -> bool:
    """Whether a run there has saved something, and its recipe is there to go on by.

    Raises:
      UserError: the folder of the checkpoints is not to be read.
      MachineError: the file system fails.
    """
    return has_checkpoints(workdir) and files.is_there(run_flags_path(workdir))


def begin_run(config: PretrainConfig) -> None:
    """Makes the workdir and writes the recipe into it: all of it or, whatever happens meanwhile, none.

    The lists of images of an earlier run there, which has no checkpoint, are removed.

    Raises:
      UserError: it cannot be written there.
    """
    try:
        if files.is_there(run_flags_path(config.workdir)):
            _remove(config.workdir, *_OF_THE_RUN, *_RESULTS)
        _write_recipe(config, secrets.token_hex(8))
    except OSError as error:
        raise files.error_of(error, f"--workdir={config.workdir}: cannot write there ({error.strerror})") from error


def forget_images(workdir: str) -> None:
    """Removes the lists of images of a start that has saved nothing: they may have been mended or taken away since."""
    _remove(workdir, *_OF_THE_RUN)


def _remove(folder: str, *names: str) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.remove(os.path.join(folder, name))


def continue_run(config: PretrainConfig) -> bool:
    """Writes another length, place of the images or share of bad ones into the recipe of the run, which stays the same.

    Returns:
      Whether its extension is longer than it was.

    Raises:
      UserError: it cannot be written.
    """
    values = _values_of(config.workdir)
    before = PretrainConfig(**values)
    now = before.replace(**{name: getattr(config, name) for name in _FOLLOWED})
    if now != before:
        try:
            now = now.replace(workdir=config.workdir)
            _write_recipe(now, run_id(config.workdir), left_out=() if flagfiles.LATER in values else (flagfiles.LATER,))
        except OSError as error:
            raise files.error_of(error, f"--workdir={config.workdir}: cannot write there ({error.strerror})") from error
    return now.extend_epochs != before.extend_epochs


def _write_recipe(config: PretrainConfig, run: str, left_out: tuple[str, ...] = ()) -> None:
    lines = config.as_flags().split("\n")
    kept = "\n".join(line for line in lines if line.partition("=")[0].removeprefix("--") not in left_out)
    text = (f"{_RUN_ID}{run}\n" if run else "") + kept
    with files.whole_file(run_flags_path(config.workdir)) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # paths may have bytes that are no text


def run_id(workdir: str) -> str:
    """What tells the run in `workdir` from all others; empty for runs that began before they had one, or without a run.

    Raises:
      UserError: its `run.flags` is not to be read.
      MachineError: the file system fails.
    """
    path = run_flags_path(workdir)
    try:
        first = files.content_of(path).partition(b"\n")[0].decode(errors="replace").rstrip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {path} cannot be read ({error.strerror})") from error
    return first.removeprefix(_RUN_ID) if first.startswith(_RUN_ID) else ""


def recipe_of(config: PretrainConfig) -> dict[str, str]:
    """The flags that make a run what it is, by name."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values.update(dataset=same_dataset(config.dataset), cache=_same_cache(config.cache))
    return {name: str(value) for name, value in values.items() if name not in NOT_RECIPE}


def same_dataset(dataset: str) -> str:
    """A `--dataset` such that all names of the same folder are one."""
    kind, colon, path = dataset.partition(":")
    if kind not in ("folder", "records") or not colon or not path:
        return dataset
    return f"{kind}:{os.path.normpath(os.path.expanduser(path))}"


def _same_cache(cache: str | None) -> str:
    """A `--cache` such that all places are one: they give the same views, and those without a cache differ a little."""
    return "somewhere" if cache else "none"


def _same_place(path: str | None) -> str | None:
    return None if path is None else os.path.realpath(os.path.expanduser(path))


# Settings with several values that mean the same run.
_SAME: dict[str, Callable[[Any], Any]] = {
    "dataset": same_dataset,
    "cache": _same_cache,
    **dict.fromkeys(BEGUN_FROM, _same_place),
}


def _same(name: str, before: Any, now: Any) -> bool:
    """Whether two values of a setting mean the same run."""
    same_of = _SAME.get(name, lambda value: value)
    return same_of(before) == same_of(now)


def load_run(workdir: str) -> PretrainConfig:
    """Reads the recipe of the run in `workdir`.

    Raises:
      UserError: there is no run, or its `run.flags` cannot be understood.
      MachineError: the file system fails.
    """
    return PretrainConfig(**_values_of(workdir, flagfiles.as_meant_today))


def _values_of(workdir: str, meant: Callable[[list[str], str], list[str]] | None = None) -> dict[str, Any]:
    """What the `run.flags` in `workdir` says, by the names of the settings; as it stands there, or as it is `meant`."""
    path = run_flags_path(workdir)
    try:
        content = files.content_of(path)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: holds no run ({path}: {error.strerror})") from error
    words = flagfiles.words_of(content, path, of_run=True)
    values = flagfiles.parsed(PretrainConfig, words if meant is None else meant(words, path), path)
    if not flagfiles.is_whole(content) and not (_ONCE_LAST in values and content.endswith((b"\n", b"\r"))):
        raise UserError(
            f"{path}: {'cut off' if content else 'empty'}, wanted all flags of the run: bring it back from a copy, or"
            f" begin another run in another folder"
        )
    return values


def with_length_begun(config: PretrainConfig) -> PretrainConfig:
    """A recipe with the `exposures` of its run in the workdir, which may have begun before `epochs` set them to 0.

    Raises:
      UserError: the workdir has a run whose `run.flags` cannot be understood.
    """
    workdir = config.workdir
    if config.exposures or not workdir or not can_continue(workdir):
        return config
    theirs = load_run(workdir)
    return config.replace(exposures=theirs.exposures) if theirs.epochs == config.epochs else config


def load_classification(workdir: str) -> PretrainConfig:
    """`load_run` for what looks at the class weights of an instance classification.

    Raises:
      UserError: as `load_run`, or the run has no such weights.
    """
    config = load_run(workdir)
    if config.method != INSTANCE:
        raise UserError(
            f"--workdir={workdir}: holds a run of --method={config.method}, wanted one of --method={INSTANCE}, whose"
            f" class weights are looked at"
        )
    return config


def holds_this_run(config: PretrainConfig) -> bool:
    """Whether `config.workdir` already holds this very run.

    Returns:
      True to continue the run there, False to start one: also where a run with other flags has not saved anything.

    Raises:
      UserError: the folder belongs to a run with other flags, is a file, or cannot be written; or it has checkpoints
        or other files of a run, and nothing tells of which.
      MachineError: the file system fails, so that it is not known what the folder holds.
    """
    if os.path.exists(config.workdir) and not os.path.isdir(config.workdir):
        raise UserError(f"--workdir={config.workdir}: is a file, not a folder")
    if not files.is_there(run_flags_path(config.workdir)):
        if has_checkpoints(config.workdir):
            raise UserError(
                f"--workdir={config.workdir}: has checkpoints, but its {RUN_FLAGS_NAME} is missing: bring it back from"
                f" a copy, or begin another run in another folder"
            )
        _refuse_files_of_others(config.workdir)
        _refuse_unwritable(config.workdir)
        return False
    theirs, values = load_run(config.workdir), _values_of(config.workdir)
    free = NOT_RECIPE if flagfiles.LATER in values else (*NOT_RECIPE, flagfiles.LATER)
    names = [field.name for field in dataclasses.fields(config) if field.name not in free]
    other = [name for name in names if not _same(name, getattr(theirs, name), getattr(config, name))]
    if other:
        if not has_checkpoints(config.workdir):
            _refuse_unwritable(config.workdir)
            return False
        longer = "" if set(other) - set(_LENGTH) else ", and --extend_epochs=N with them for N epochs more"
        raise UserError(
            f"--workdir={config.workdir} belongs to a run with --{other[0]}={getattr(theirs, other[0])}, this one has"
            f" --{other[0]}={getattr(config, other[0])}: give the same flags to continue it{longer}, or another folder"
        )
    if config.extend_epochs < theirs.extend_epochs:
        raise UserError(
            f"--workdir={config.workdir} belongs to a run with --extend_epochs={theirs.extend_epochs}, this one has"
            f" --extend_epochs={config.extend_epochs}: give the same flags to continue it, or a longer extension"
        )
    _refuse_unwritable(config.workdir)
    return True


def _refuse_files_of_others(workdir: str) -> None:
    """A run writes its flags first: what has a name of its files without them is not its own."""
    for name in _REPLACED:
        if files.is_there(os.path.join(workdir, name), follow_links=False):
            raise UserError(
                f"--workdir={workdir}: holds a {name}, which a run would replace, and no {RUN_FLAGS_NAME} of a run:"
                f" wanted another folder, or that file somewhere else"
            )


def _refuse_unwritable(folder: str) -> None:
    existing = files.nearest_existing(folder)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={folder}: cannot write to {existing}")
