"""One TensorFlow checkpoint per save, whatever the number of workers.

The replicated part (encoder, optimiser) is an ordinary `tf.train.Checkpoint`. The classifier is stored as slices of one
`[N, D]` tensor: each worker writes its rows into a part of its own, rank 0 merges the parts' indices. So
`tf.train.load_checkpoint` reads `classifier/rows` as one tensor, and a run saved by T workers continues on any number.

A save is whole or not there. Everything is written into a folder of its own, read back, and brought onto the disk; then
the files get their names, the manifest last (`checkpoint_manifest`); only then the oldest checkpoint goes. The workers
tell each other how each of these stages went: where one fails, all stop, and what was there before stays.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Callable

import tensorflow as tf

from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import MachineError, UserError, one_line, shown
from instcls_tf.files import TO_BE_MENDED, flush_folder, flush_to_disk, look_again
from instcls_tf.run import checkpoint_choice, checkpoint_manifest
from instcls_tf.run.checkpoint_manifest import Manifest, Origin
from instcls_tf.run.parts import Slices, refuse_not_finite
from instcls_tf.run.workdir import run_id

_KEPT = 2
# Between the prefix of a checkpoint and the number of a file with its tensors.
_DATA = ".data-"
# Why a file system does not write until a person has mended it; TensorFlow wraps these into longer sentences.
_TO_BE_MENDED = tuple(map(os.strerror, TO_BE_MENDED))


def save(
    workdir: str,
    step: int,
    replicated: tf.train.Checkpoint,
    sliced: dict[str, Slices],
    origin: Origin = Origin(),  # noqa: B008 # frozen
    keep: int = _KEPT,
    seconds: float = 0.0,
) -> str:
    """Writes the checkpoint of `step`; all workers call it together, on a file system that they share.

    The previous checkpoint stays valid until this one is complete.

    Args:
      workdir: the run's folder.
      step: completed steps, part of the name.
      replicated: what is equal on all workers; rank 0's is written.
      sliced: tensors that are split over the workers, by their names in the checkpoint.
      origin: the run, for the manifest.
      keep: how many of the newest checkpoints stay.
      seconds: that the run has taken so far, for the manifest.

    Returns:
      The checkpoint's prefix, for `tf.train.load_checkpoint`.

    Raises:
      UserError: a value is not finite, or the disk is full, or not to be written to; on all workers alike.
      MachineError: the checkpoint cannot be written for another reason; likewise.
    """
    prefix, parts = checkpoint_choice.prefix_of(workdir, step), checkpoint_choice.writing_folder(workdir, step)
    is_chief = collectives.rank() == 0
    written: dict[str, tuple[int, str]] = {}

    def prepare() -> None:
        refuse_not_finite(replicated, sliced, f"step {step} is not saved ({checkpoint_choice.last_good(workdir)})")
        if is_chief:
            shutil.rmtree(parts, ignore_errors=True)
            os.makedirs(parts)

    def write() -> None:
        look_again(os.path.abspath(parts))  # rank 0 has made it, and perhaps the folder above, on its machine
        own = _write_slices(os.path.join(parts, f"rank{collectives.rank():05d}"), sliced)
        if is_chief:
            own.append(replicated.write(os.path.join(parts, "replicated")))
            _read_all(own[-1])
        for part in own:
            for path in _data_of(part):
                flush_to_disk(path)
                written[os.path.basename(path)] = checkpoint_manifest.file_facts(path)

    def merge() -> None:
        if is_chief:
            rows = {name: part.total for name, part in sliced.items()}
            manifest = Manifest(step, collectives.size(), rows, origin, {}, seconds)
            _merge(parts, prefix, manifest, {name: facts for of in everything for name, facts in of.items()})
            checkpoint_choice.remember(workdir, prefix, keep)

    stages = _Stages(workdir, step, parts)
    stages.do(prepare)
    stages.do(write)
    everything = workers.everybodys(written)
    stages.do(merge)
    return prefix


class _Stages:
    """Does the stages of a save on all workers; where one fails, it is undone and all of them stop."""

    def __init__(self, workdir: str, step: int, parts: str):
        self._workdir, self._step, self._parts = workdir, step, parts

    def do(self, stage: Callable[[], None]) -> None:
        """Does one stage, and returns once all workers have.

        Raises:
          UserError: the first worker's that failed.
        """
        problem, is_mistake = "", True
        try:
            stage()
        except UserError as error:
            problem, is_mistake = str(error), not isinstance(error, MachineError)
        except (OSError, tf.errors.OpError) as error:
            problem = self._sentence(error)
            is_mistake = any(reason in str(error) for reason in _TO_BE_MENDED)
        problems = [one for one in workers.everybodys([problem, is_mistake]) if one[0]]
        if problems:
            if collectives.rank() == 0:
                shutil.rmtree(self._parts, ignore_errors=True)
            problem, is_mistake = problems[0]
            raise UserError(problem) if is_mistake else MachineError(problem)

    def _sentence(self, error: Exception) -> str:
        folder = os.path.dirname(self._parts)
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error).splitlines()[0]
        full = os.strerror(28)  # ENOSPC, which TensorFlow wraps into longer sentences
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder if os.path.isdir(folder) else self._workdir).free
            reason = f"{full if full in reason else shown(reason)}; {free / 1e6:.1f} MB are free there"
        return (
            f"--workdir={shown(self._workdir)}: cannot write the checkpoint of step {self._step} to {shown(folder)}"
            f" ({reason}); {checkpoint_choice.last_good(self._workdir)}, from which the same command goes on"
        )


def _merge(parts: str, prefix: str, manifest: Manifest, facts: dict[str, tuple[int, str]]) -> None:
    """Makes one checkpoint of the parts, and gives it its name when it is whole and on the disk.

    Args:
      parts: the folder with the parts of all workers.
      prefix: of the checkpoint.
      manifest: what is known of it, without its files.
      facts: bytes and checksum of each file with tensors that a worker has written, by name.
    """
    # By what the workers say, not by a listing, in which a network file system may not have all of it yet.
    written = sorted({os.path.join(parts, name.partition(_DATA)[0]) for name in facts})
    # Data files keep their content and are numbered in the order of the parts.
    sources = sorted(facts, key=lambda name: (name.partition(_DATA)[0], name))
    merged = os.path.join(parts, "merged", os.path.basename(prefix))
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=written, destination_prefix=merged, delete_old_dirs=False, allow_missing_files=False
    )
    shapes = shapes_of(merged)
    for name, total in manifest.rows.items():
        if shapes[name][0] != total:
            raise OSError(f"{name} has {shapes[name][0]} rows, {total} were written")
    data = _data_of(merged)
    flush_to_disk(merged + ".index")
    for path, source in zip(data, sources):
        manifest.files[os.path.basename(path)] = facts[source]
    manifest.files[os.path.basename(merged) + ".index"] = checkpoint_manifest.file_facts(merged + ".index")
    if [os.path.getsize(path) for path in data] != [facts[source][0] for source in sources]:
        raise OSError("the merged files have other sizes than the parts")
    checkpoint_manifest.write(checkpoint_manifest.path_of(merged), manifest)
    flush_folder(os.path.dirname(merged))
    checkpoint_choice.make_room(prefix, manifest.origin.run_id)
    for path in (*data, merged + ".index", checkpoint_manifest.path_of(merged)):
        os.replace(path, os.path.join(os.path.dirname(prefix), os.path.basename(path)))
        flush_folder(os.path.dirname(prefix))
    shutil.rmtree(parts)


def _data_of(prefix: str) -> list[str]:
    """The paths of the data files of a checkpoint, or of a part of one, that this worker has written.

    Raises:
      OSError: there are none.
    """
    found = sorted(glob.glob(f"{glob.escape(prefix)}{_DATA}*"))
    if not found:
        raise OSError(f"{shown(os.path.basename(prefix))} has no data files")
    return found


def _write_slices(prefix: str, sliced: dict[str, Slices]) -> list[str]:
    """Writes this worker's rows and reads them back; the prefixes of the parts."""
    written: list[str] = []
    for name, part in sliced.items():
        for start, stop in part.chunks():
            written.append(f"{prefix}-{len(written):05d}")
            spec = part.spec(start, stop)
            values = part.variable.sparse_read(tf.range(start, stop))
            about = {"prefix": written[-1], "tensor_names": [name], "shape_and_slices": [spec]}
            tf.raw_ops.SaveV2(tensors=[values], **about)
            tf.raw_ops.RestoreV2(dtypes=[values.dtype], **about)
    return written


def _read_all(prefix: str) -> None:
    """Compares all of a checkpoint's tensors with their checksums."""
    reader = tf.train.load_checkpoint(prefix)
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def latest(workdir: str) -> str | None:
    """The prefix of the newest checkpoint of a run that is whole as far as its names and sizes tell.

    Where that is not the newest of all, standard error says so.

    Returns:
      None if the run has not saved any.

    Raises:
      UserError: there are checkpoints, but none can be used.
      MachineError: the file system fails.
    """
    choice = checkpoint_choice.choose(workdir, wanted=Origin(run_id=run_id(workdir)))
    if collectives.rank() == 0:
        for warning in choice.warnings:
            sys.stderr.write(f"warning: {one_line(warning)}\n")
    return choice.prefix


def newest(workdir: str) -> str:
    """`latest` of a run that must have saved one.

    Raises:
      UserError: it has not, or see `latest`.
    """
    prefix = latest(workdir)
    if prefix is None:
        raise UserError(f"--workdir={workdir}: the run has not saved a checkpoint yet")
    return prefix


def restore(
    prefix: str,
    replicated: tf.train.Checkpoint,
    sliced: dict[str, Slices],
    origin: Origin = Origin(),  # noqa: B008 # frozen
) -> None:
    """Reads a checkpoint written by any number of workers; each worker reads its own slices.

    Args:
      prefix: of the checkpoint.
      replicated: receives what all workers hold alike.
      sliced: receive this worker's rows.
      origin: the run that goes on from it.

    Raises:
      UserError: the checkpoint is of another run, recipe or dataset, lacks a variable, holds another number of
        instances or values that are not finite, or is damaged.
    """
    manifest = checkpoint_manifest.read(prefix)
    differs = checkpoint_manifest.difference(manifest.origin, origin) if manifest else ""
    if differs:
        raise UserError(f"{prefix}: {differs}: this checkpoint cannot be continued here")
    with damage_is_a_user_error(prefix):
        shapes = shapes_of(prefix)
        for name, part in sliced.items():
            if name not in shapes:
                raise UserError(f"{prefix}: the checkpoint has no {name}")
            if shapes[name][0] != part.total:
                raise UserError(f"{prefix}: was made for {shapes[name][0]} instances, the dataset has {part.total} now")
        replicated.read(prefix).assert_consumed()
        for name, part in sliced.items():
            _read_slices(prefix, name, part)
    refuse_not_finite(replicated, sliced, prefix)


def shapes_of(prefix: str) -> dict[str, list[int]]:
    """The shapes of a checkpoint's tensors, by their names."""
    return tf.train.load_checkpoint(prefix).get_variable_to_shape_map()


def holds(prefix: str, name: str) -> bool:
    """Whether a checkpoint has a tensor of this name.

    Raises:
      UserError: the checkpoint is damaged.
    """
    with damage_is_a_user_error(prefix):
        return name in shapes_of(prefix)


@contextlib.contextmanager
def damage_is_a_user_error(prefix: str) -> Iterator[None]:
    """What TensorFlow raises on a damaged checkpoint becomes one sentence that names it.

    Raises:
      UserError: it is damaged.
      MachineError: the file system fails.
    """
    try:
        yield
    except UserError:
        raise
    except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
        kind = MachineError if checkpoint_choice.is_of_machine(error) else UserError
        raise kind(f"{prefix}: cannot restore this checkpoint: {str(error).splitlines()[0]}") from error


def _read_slices(prefix: str, name: str, part: Slices) -> None:
    for start, stop in part.chunks():
        (values,) = tf.raw_ops.RestoreV2(
            prefix=prefix,
            tensor_names=[name],
            shape_and_slices=[part.spec(start, stop)],
            dtypes=[part.variable.dtype],
        )
        part.variable.scatter_update(tf.IndexedSlices(values, tf.range(start, stop)))
