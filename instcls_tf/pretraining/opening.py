"""How a run takes its workdir: alone, on a file system that all workers share, and from the newest whole checkpoint."""

from __future__ import annotations

from typing import NamedTuple

from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError
from instcls_tf.files import is_there, missing_folders, remove_made
from instcls_tf.pretraining import agreement
from instcls_tf.pretraining.steps import Steps
from instcls_tf.progress import Progress
from instcls_tf.run import checkpoint_choice, checkpoint_manifest
from instcls_tf.run.checkpoint_manifest import Origin
from instcls_tf.run.lock import WorkdirLock
from instcls_tf.run.log import RunClock
from instcls_tf.run.workdir import (
    BEGUN_FROM,
    continue_run,
    holds_this_run,
    load_run,
    recipe_of,
    run_flags_path,
    run_id,
)


class Opened(NamedTuple):
    """A workdir that is this run's until `release`."""

    made: tuple[str, ...]  # the folder and those above it, as far as rank 0 has made them
    lock: WorkdirLock | None  # of rank 0
    resuming: bool  # whether it holds this very run
    prefix: str | None  # of the checkpoint to go on from

    def release(self) -> None:
        """Lets others have it; folders that were made for it, and that nothing is in, are removed."""
        if self.lock is not None:
            self.lock.release()
        remove_made(self.made)


def take_workdir(config: PretrainConfig, source: Source, progress: Progress) -> Opened:
    """Takes the workdir and chooses the checkpoint to go on from; all workers together, before anything else is sent.

    Args:
      config: the recipe.
      source: its training images.
      progress: says if that is not the newest one.

    Raises:
      UserError: the workers differ, another process has the workdir, or it holds no checkpoint that can be used; on all
        workers alike.
      MachineError: a machine or file system failed, likewise.
    """
    agreement.refuse_differences(config, source)
    is_chief = collectives.rank() == 0
    made = missing_folders(config.workdir) if is_chief else ()
    agreement.refuse_other_workdirs(config.workdir)
    opened = untaken = Opened(made, None, False, None)
    try:
        # One worker decides: another's file system may show it another folder for a while.
        opened = workers.all_or_none(lambda: _take(untaken, config, source, progress) if is_chief else untaken)
        resuming, step = workers.everybodys([opened.resuming, _step(opened.prefix)])[0]
        prefix = None if step is None else checkpoint_choice.prefix_of(config.workdir, step)
        if prefix is not None:
            agreement.refuse_other_checkpoints(prefix)
    except UserError:
        opened.release()
        raise
    return opened._replace(resuming=resuming, prefix=prefix)


def _take(opened: Opened, config: PretrainConfig, source: Source, progress: Progress) -> Opened:
    opened = opened._replace(lock=WorkdirLock(config.workdir))
    try:
        # Once more: it may have changed hands since.
        if not holds_this_run(config):
            if is_there(run_flags_path(config.workdir)):
                progress.say(
                    f"{config.workdir}: a run with other flags has saved nothing there, this one takes its place"
                )
            return opened
        choice = checkpoint_choice.choose(config.workdir, whole=True, wanted=Origin(run_id=run_id(config.workdir)))
        _refuse_another_extension(config, source, choice.prefix)
        if continue_run(config):
            regular = config.for_instances(source.num_instances).epochs
            progress.say(f"{config.workdir}: extended to {regular} + {config.extend_epochs} epochs")
    except UserError:
        opened.release()
        raise
    for warning in choice.warnings:
        progress.say(f"warning: {warning}")
    return opened._replace(resuming=True, prefix=choice.prefix)


def _refuse_another_extension(config: PretrainConfig, source: Source, prefix: str | None) -> None:
    """One that has begun stays as long as it is: its rates follow one cosine from its first step to its last."""
    before, step = load_run(config.workdir).extend_epochs, _step(prefix) or 0
    steps = Steps(config.for_instances(source.num_instances), source.num_instances)
    regular = steps.total - steps.extension
    if before != config.extend_epochs and step > regular:
        kept = (
            f", or --extend_from={config.workdir}, which keeps the class weights" if config.method == INSTANCE else ""
        )
        raise UserError(
            f"--extend_epochs={config.extend_epochs}: the extension of {config.workdir} by {before} has begun (step"
            f" {step}, it starts at {regular}) and its learning rate runs down to its end: give the same, or begin"
            f" another run from this one with --init={config.workdir}{kept}"
        )


def _step(prefix: str | None) -> int | None:
    return None if prefix is None else checkpoint_choice.step_of(prefix)


def origin_of(config: PretrainConfig, source: Source) -> Origin:
    """What the checkpoints of this run are of; once the run has begun."""
    recipe = {name: value for name, value in recipe_of(config).items() if name not in BEGUN_FROM}
    return Origin(run_id(config.workdir), recipe, source.ids_digest().hex())


def clock_of(prefix: str | None, started: float) -> RunClock:
    """The wall time of a run, of which the checkpoint to go on from has kept that of the parts before.

    Args:
      prefix: of the checkpoint; None for a run that begins.
      started: when this part began, of `time.monotonic()`.
    """
    manifest = None if prefix is None else checkpoint_manifest.read(prefix)
    return RunClock(started, manifest.seconds if manifest else 0.0)
