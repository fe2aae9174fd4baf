"""What checkpoints a run has, for people and programs."""

from __future__ import annotations

import os

import tensorflow as tf

from instcls_tf.errors import MachineError, UserError, shown
from instcls_tf.report.answer import Answer
from instcls_tf.run import checkpoint_choice, checkpoint_manifest


def describe(workdir: str, step: int | None, whole: bool) -> Answer:
    """The checkpoints of a run, the oldest first.

    Args:
      workdir: the run's folder.
      step: of the only checkpoint that is meant; None for all.
      whole: whether to read every byte, or to look at names and sizes alone.

    Returns:
      `checkpoints`, a list of `step`, `bytes`, `problem` (empty if there is none), `unread` (whether that is no damage,
      but the file system's), `run_id`, `workers` (that wrote it), `dataset` (its digest), `tensors` and `instances`;
      `bytes` and the last two are None where they cannot be read.

    Raises:
      UserError: there is no such checkpoint.
    """
    prefixes = [p for p in checkpoint_choice.prefixes(workdir) if step in (None, checkpoint_choice.step_of(p))]
    if not prefixes:
        which = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        raise UserError(f"{shown(workdir)}: holds no run with {which}")
    found = [_facts(prefix, whole) for prefix in prefixes]
    good = "whole" if whole else "complete"
    lines = [
        f"step {facts['step']}: {_size(facts['bytes'])}, {facts['instances'] or 'no'} classes, written by"
        f" {facts['workers'] or 'unknown'} worker(s) of run {facts['run_id'] or '(of an earlier version)'}:"
        f" {facts['problem'] or good}"
        for facts in found
    ]
    return Answer({"workdir": workdir, "checkpoints": found}, "\n".join(lines))


def _size(count: int | None) -> str:
    return "of unknown size" if count is None else f"{count / 1e6:.1f} MB"


def refuse_damage(answer: Answer) -> None:
    """Ends a command whose answer holds checkpoints that are not whole, or may not be.

    Raises:
      UserError: some are damaged; names the first problem.
      MachineError: some could not be read, as the file system fails, and of the others none is damaged; likewise.
    """
    found = answer.result["checkpoints"]
    for unread, kind, what in ((False, UserError, "damaged"), (True, MachineError, "may be whole or not")):
        problems = [facts["problem"] for facts in found if facts["problem"] and facts["unread"] == unread]
        if problems:
            raise kind(f"{len(problems)} of {len(found)} checkpoint(s) {what}: {problems[0]}")


def _facts(prefix: str, whole: bool) -> dict:
    problem, unread, manifest = "", False, None
    try:
        problem = checkpoint_choice.problem_of(prefix, whole)
        manifest = checkpoint_manifest.read(prefix)
        shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    except UserError as error:
        unread = not problem and isinstance(error, MachineError)
        problem, shapes = problem or str(error), {}
    except (tf.errors.OpError, ValueError, IndexError) as error:
        unread = not problem and checkpoint_choice.is_of_machine(error)
        problem, shapes = problem or f"{shown(prefix)}: {str(error).splitlines()[0]}", {}
    rows = [shape[0] for name, shape in shapes.items() if name.endswith("/rows")]
    return {
        "step": checkpoint_choice.step_of(prefix),
        "bytes": _bytes_of(prefix),
        "problem": problem,
        "unread": unread,
        "run_id": manifest.origin.run_id if manifest else "",
        "workers": manifest.workers if manifest else None,
        "dataset": manifest.origin.dataset if manifest else "",
        "tensors": len(shapes) or None,
        "instances": rows[0] if rows else None,
    }


def _bytes_of(prefix: str) -> int | None:
    try:
        return sum(os.path.getsize(path) for path in checkpoint_manifest.files_of(prefix))
    except OSError:
        return None
