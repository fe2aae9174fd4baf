"""What a run saves that is asked to stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tensorflow as tf

from instcls_tf.pretraining.state import Run
from instcls_tf.pretraining.stopping import StopRequest
from instcls_tf.progress import Progress
from instcls_tf.run import checkpoint_choice, signals


def make_run(step: int) -> Run:
    method = SimpleNamespace(replicated=dict, sliced=dict, hard_negatives=None)
    encoder = tf.train.Checkpoint(kernel=tf.Variable([1.0]))
    return Run(encoder, method, tf.train.Checkpoint(iterations=tf.Variable(step, dtype=tf.int64)), set())


def stop(run: Run, workdir: str) -> None:
    with pytest.raises(signals.Stopped, match=f"goes on from step {run.step}, which is saved"):
        StopRequest(run, workdir, Progress(visible=False)).stop("here")


def test_a_checkpoint_that_was_gone_around_is_not_this_run_s(tmp_path):
    """It is the newest, of a step that the run makes once more, and damaged."""
    workdir = str(tmp_path)
    for step in (7, 9):
        make_run(step).save(workdir, with_lists=False)
    newest, older = (checkpoint_choice.prefix_of(workdir, step) for step in (9, 7))
    (tmp_path / "checkpoints" / "ckpt-00000009.data-00000-of-00001").write_bytes(b"damaged")
    run = make_run(0)
    run.restore(older)
    stop(run, workdir)
    assert checkpoint_choice.choose(workdir, whole=True).prefix == older
    run.optimizer.iterations.assign(9)
    stop(run, workdir)
    assert checkpoint_choice.choose(workdir, whole=True) == (newest, ())


def test_what_is_saved_is_not_saved_once_more(tmp_path, monkeypatch):
    run, restored = make_run(7), make_run(0)
    run.save(str(tmp_path), with_lists=False)
    restored.restore(checkpoint_choice.prefix_of(str(tmp_path), 7))
    monkeypatch.setattr(Run, "save", lambda *_: pytest.fail("saved"))
    for one in (run, restored):
        stop(one, str(tmp_path))
