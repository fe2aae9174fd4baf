"""The folder of a run's checkpoints: what is there, which is the newest that is whole, and what is to be removed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from typing import NamedTuple

import tensorflow as tf
from google.protobuf import text_format

from instcls_tf import files
from instcls_tf.errors import MachineError, UserError, shown
from instcls_tf.run import checkpoint_manifest
from instcls_tf.run.checkpoint_manifest import Origin
from instcls_tf.run.workdir import checkpoint_folder, has_checkpoints
from instcls_tf.workdir_files import CHECKPOINT_PREFIX, RECORD_NAME

_NAME = re.compile(rf"({CHECKPOINT_PREFIX}\d{{8,}})\..+")
_WRITING = ".writing-"
# Why a file system does not read for a while; TensorFlow wraps these into longer sentences.
_FAILURES = tuple(map(os.strerror, (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN)))


class Choice(NamedTuple):
    """The checkpoint to go on from."""

    prefix: str | None  # None where nothing was ever saved
    warnings: tuple[str, ...]  # what the user should know: newer ones that are not whole


def prefix_of(workdir: str, step: int) -> str:
    """The prefix of the checkpoint after `step` steps."""
    return os.path.join(checkpoint_folder(workdir), f"{CHECKPOINT_PREFIX}{step:08d}")


def step_of(prefix: str) -> int:
    """The completed steps of a checkpoint."""
    return int(os.path.basename(prefix).removeprefix(CHECKPOINT_PREFIX))


def writing_folder(workdir: str, step: int) -> str:
    """Where a checkpoint is written before it gets its name."""
    return os.path.join(checkpoint_folder(workdir), f"{_WRITING}{step:08d}")


def prefixes(workdir: str) -> list[str]:
    """The prefixes of all that is there of checkpoints, whole or not, the oldest first."""
    folder = checkpoint_folder(workdir)
    names = {found[1] for found in map(_NAME.fullmatch, files.names_in(folder)) if found}
    return sorted((os.path.join(folder, name) for name in names), key=step_of)


def choose(workdir: str, whole: bool = False, wanted: Origin = Origin()) -> Choice:  # noqa: B008 # frozen
    """The newest checkpoint that is whole and of this run.

    Args:
      workdir: the run's folder.
      whole: whether to read all of it, or to look at names and sizes alone.
      wanted: the run that wants to go on; its recipe and dataset are not compared.

    Raises:
      UserError: there are checkpoints, or the record of one, but none can be used.
      MachineError: the file system fails, so that it is not known which is the newest.
    """
    named, record_problem = _recorded(workdir)
    found = prefixes(workdir) if has_checkpoints(workdir) else []
    problems = []
    for prefix in reversed(found):
        try:
            problem = problem_of(prefix, whole) or of_another_run(prefix, wanted)
        except MachineError as error:
            raise MachineError(
                f"{error}: whether the checkpoint of step {step_of(prefix)} is whole is not known; the same command"
                f" goes on when it can be read, or from the one before if {shown(prefix)}.* are taken away"
            ) from error
        if problem:
            problems.append(problem)
            continue
        if problems:
            record_problem = ""
            problems[-1] += f": the older checkpoint of step {step_of(prefix)} is taken"
        elif record_problem or named != os.path.basename(prefix):
            says = record_problem or f"{shown(_record(workdir))} names {named or 'none'}"
            problems.append(f"{says}: the newest checkpoint, that of step {step_of(prefix)}, is whole and taken")
        return Choice(prefix, tuple(problems))
    if problems:
        raise UserError(f"--workdir={shown(workdir)}: none of its checkpoints can be used: {'; '.join(problems)}")
    if files.is_there(_record(workdir)):
        raise UserError(
            f"--workdir={shown(workdir)}: {record_problem or f'{shown(_record(workdir))} names {named}'}, but no file"
            f" of any checkpoint is there: bring them back, or take the folder checkpoints/ away to begin anew"
        )
    return Choice(None, ())


def problem_of(prefix: str, whole: bool) -> str:
    """What is wrong with a checkpoint; empty if nothing is. See `checkpoint_manifest.damage`.

    Raises:
      MachineError: the file system fails.
    """
    problem = checkpoint_manifest.damage(prefix, whole)
    if problem or not whole or files.is_there(checkpoint_manifest.path_of(prefix)):
        return problem
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, IndexError, ValueError) as error:
        told = str(error).splitlines()[0]
        if is_of_machine(error):
            raise MachineError(f"{shown(prefix)}: cannot be read ({shown(told)})") from error
        return f"{shown(prefix)}: damaged ({told})"
    return ""


def is_of_machine(error: Exception) -> bool:
    """Whether TensorFlow could not read a file because the file system failed, which is no damage of the file."""
    return any(reason in str(error) for reason in _FAILURES)


def of_another_run(prefix: str, wanted: Origin) -> str:
    manifest = checkpoint_manifest.read(prefix)
    differs = manifest and checkpoint_manifest.difference(Origin(run_id=manifest.origin.run_id), wanted)
    return f"{shown(prefix)}: {differs}" if differs else ""


def _record(workdir: str) -> str:
    """Written by TensorFlow's own tools as well; what it names is only compared with what is there."""
    return os.path.join(checkpoint_folder(workdir), RECORD_NAME)


def _recorded(workdir: str) -> tuple[str, str]:
    """The name of the checkpoint that the record names, and what is wrong with the record."""
    if not files.is_there(_record(workdir)):
        return "", f"{shown(_record(workdir))} is missing"
    try:
        state = tf.train.get_checkpoint_state(checkpoint_folder(workdir))
    except (ValueError, tf.errors.OpError):
        state = None
    if state is None:
        return "", f"cannot understand {shown(_record(workdir))}, which names the newest checkpoint"
    return os.path.basename(state.model_checkpoint_path), ""


def remember(workdir: str, newest: str, keep: int) -> None:
    """Records the newest checkpoint, then removes what is older than the newest `keep`, and what was left unfinished.

    Only whole ones count: one that has lost a file does not take a good one's place. Another run's are not touched.

    Raises:
      OSError: the record cannot be written.
    """
    folder, run_id = checkpoint_folder(workdir), _run_of(newest)
    own = [prefix for prefix in prefixes(workdir) if step_of(prefix) <= step_of(newest) and _is_of(prefix, run_id)]
    kept = [prefix for prefix in own if not problem_of(prefix, whole=False)][-keep:] or [newest]
    state = tf.compat.v1.train.generate_checkpoint_state_proto(
        folder, os.path.basename(newest), [os.path.basename(path) for path in kept]
    )
    with files.whole_file(_record(workdir)) as file:
        file.write(text_format.MessageToString(state).encode())
    for prefix in own[: own.index(kept[0])]:
        remove(prefix)
    remove_strays(workdir, newest)


def make_room(prefix: str, run_id: str) -> None:
    """Frees the names of a checkpoint: an earlier save of the same step goes, another run's is laid aside.

    Args:
      prefix: of the checkpoint that is about to get these names.
      run_id: of its run.

    Raises:
      OSError: that cannot be done.
    """
    if _is_of(prefix, run_id):
        remove(prefix)
        return
    aside = os.path.join(os.path.dirname(prefix), f"of-run-{_run_of(prefix)}")
    os.makedirs(aside, exist_ok=True)
    # The manifest last: as long as it is there, nobody takes the rest for this run's.
    for path in reversed(checkpoint_manifest.files_of(prefix)):
        os.replace(path, os.path.join(aside, os.path.basename(path)))


def remove(prefix: str) -> None:
    """Removes a checkpoint; whenever this is cut short, what is left is none."""
    for path in checkpoint_manifest.files_of(prefix):
        os.remove(path)


def remove_strays(workdir: str, newest: str) -> None:
    """Removes what ended saves have left, and what is later than the newest checkpoint, from which the run went on.

    Args:
      workdir: the run's folder.
      newest: the checkpoint that was just written.
    """
    folder = checkpoint_folder(workdir)
    for name in os.listdir(folder):
        if name.startswith(_WRITING):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        elif name.endswith(".new"):
            os.remove(os.path.join(folder, name))
    run_id = _run_of(newest)
    for prefix in prefixes(workdir):
        if step_of(prefix) > step_of(newest) and _is_of(prefix, run_id):
            remove(prefix)


def _run_of(prefix: str) -> str:
    """Empty where that is not known.

    Raises:
      MachineError: the file system fails: nothing is to be removed then.
    """
    try:
        manifest = checkpoint_manifest.read(prefix)
    except MachineError:
        raise
    except UserError:
        return ""
    return manifest.origin.run_id if manifest else ""


def _is_of(prefix: str, run_id: str) -> bool:
    """Whether a checkpoint is a run's; what was copied in from another one is not that run's to remove."""
    return _run_of(prefix) in ("", run_id)


def last_good(workdir: str) -> str:
    """Words for a message: the checkpoint to which a run goes back."""
    with contextlib.suppress(UserError):
        try:
            prefix = choose(workdir).prefix
        except MachineError:
            return "the checkpoints before cannot be read now"
        if prefix:
            return f"the last good checkpoint is that of step {step_of(prefix)}"
    return "there is no checkpoint yet"
