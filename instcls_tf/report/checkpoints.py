"""What checkpoints a run has, for people and programs."""

from __future__ import annotations

import os

import tensorflow as tf

from instcls_tf.errors import UserError, shown
from instcls_tf.report.answer import Answer
from instcls_tf.run import checkpoint_choice, checkpoint_manifest


def describe(workdir: str, step: int | None, whole: bool) -> Answer:
    """The checkpoints of a run, the oldest first.

    Args:
      workdir: the run's folder.
      step: of the only checkpoint that is meant; None for all.
      whole: whether to read every byte, or to look at names and sizes alone.

    Returns:
      `checkpoints`, a list of `step`, `bytes`, `problem` (empty if there is none), `run_id`, `workers` (that wrote it),
      `dataset` (its digest), `tensors` and `instances`; the last two are None where they cannot be read.

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
        f"step {facts['step']}: {facts['bytes'] / 1e6:.1f} MB, {facts['instances'] or 'no'} classes, written by"
        f" {facts['workers'] or 'unknown'} worker(s) of run {facts['run_id'] or '(of an earlier version)'}:"
        f" {facts['problem'] or good}"
        for facts in found
    ]
    return Answer({"workdir": workdir, "checkpoints": found}, "\n".join(lines))


def refuse_damage(answer: Answer) -> None:
    """Ends a command whose answer holds damaged checkpoints.

    Raises:
      UserError: names the first problem.
    """
    problems = [facts["problem"] for facts in answer.result["checkpoints"] if facts["problem"]]
    if problems:
        raise UserError(f"{len(problems)} of {len(answer.result['checkpoints'])} checkpoint(s) damaged: {problems[0]}")


def _facts(prefix: str, whole: bool) -> dict:
    problem, manifest = "", None
    try:
        problem = checkpoint_choice.problem_of(prefix, whole)
        manifest = checkpoint_manifest.read(prefix)
        shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    except UserError as error:
        problem, shapes = problem or str(error), {}
    except (tf.errors.OpError, ValueError, IndexError) as error:
        problem, shapes = problem or f"{shown(prefix)}: {str(error).splitlines()[0]}", {}
    rows = [shape[0] for name, shape in shapes.items() if name.endswith("/rows")]
    return {
        "step": checkpoint_choice.step_of(prefix),
        "bytes": sum(os.path.getsize(path) for path in checkpoint_manifest.files_of(prefix)),
        "problem": problem,
        "run_id": manifest.origin.run_id if manifest else "",
        "workers": manifest.workers if manifest else None,
        "dataset": manifest.origin.dataset if manifest else "",
        "tensors": len(shapes) or None,
        "instances": rows[0] if rows else None,
    }
