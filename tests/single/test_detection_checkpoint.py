"""The state of a detector's fine-tune belongs to the weights and the data it began with."""

from __future__ import annotations

import os

import pytest
import tensorflow as tf

from instcls_tf import files
from instcls_tf.detection import checkpoint
from instcls_tf.detection.config import DetectConfig
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import MachineError, UserError
from tests.full_disk import full_disk
from tests.single.test_failing_file_systems import Failing


def test_a_run_that_went_on_starts_another_fine_tune(tmp_path):
    config = DetectConfig(workdir=str(tmp_path), dataset="folder:cells")
    checkpoint.save(config, "first weights", tf.train.Checkpoint(x=tf.Variable(3.0)), 5)
    found = tf.Variable(0.0)
    assert checkpoint.restore(config, "second weights", tf.train.Checkpoint(x=found)) == 0
    assert float(found) == 0
    assert checkpoint.restore(config, "first weights", tf.train.Checkpoint(x=found)) == 5
    assert float(found) == 3


def test_a_state_that_cannot_be_seen_is_not_taken_for_none(tmp_path, monkeypatch):
    """The next save would remove it. What rank 0 sees holds for all."""
    config, found = DetectConfig(workdir=str(tmp_path), dataset="folder:cells"), tf.Variable(0.0)
    checkpoint.save(config, "weights", tf.train.Checkpoint(x=tf.Variable(3.0)), 5)
    monkeypatch.setattr(files, "_PAUSE_SECONDS", 0.0)
    original = os.stat
    monkeypatch.setattr(os, "stat", Failing(original, "state.json", times=1))
    assert checkpoint.restore(config, "weights", tf.train.Checkpoint(x=found)) == 5
    monkeypatch.setattr(os, "stat", Failing(original, "state.json", times=4))
    with pytest.raises(MachineError, match=r"/state\.json: cannot be read \(Stale file handle\), tried 4 times"):
        checkpoint.restore(config, "weights", tf.train.Checkpoint(x=found))
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    monkeypatch.setattr(workers, "everybodys", lambda mine: [5 if mine is None else mine])
    os.remove(tmp_path / "detector" / "state.json")
    found.assign(0.0)
    assert checkpoint.restore(config, "weights", tf.train.Checkpoint(x=found)) == 5 and float(found) == 3


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "{}", '{"step": null, "settings": {}}', "null"])
def test_a_damaged_record_is_one_sentence(tmp_path, content):
    config = DetectConfig(workdir=str(tmp_path), dataset="folder:cells")
    state = tf.train.Checkpoint(x=tf.Variable(3.0))
    checkpoint.save(config, "weights", state, 5)
    record = tmp_path / "detector" / "state.json"
    record.write_text(content)
    with pytest.raises(UserError) as error:
        checkpoint.restore(config, "weights", state)
    assert str(error.value) == (
        f"{record}: {'damaged' if content else 'empty'}, wanted the state of a fine-tune: bring it back from a copy, or"
        f" take {tmp_path}/detector away to begin anew"
    )


def test_a_full_disk_is_one_sentence(tmp_path):
    """The state before it stays."""
    config, value = DetectConfig(workdir=str(tmp_path), dataset="folder:cells"), tf.Variable(tf.ones([1000]))
    checkpoint.save(config, "weights", tf.train.Checkpoint(x=value), 5)
    sentence = rf"^{tmp_path}/detector: cannot write the state of step 6 there \(.*File too large"
    with full_disk(100), pytest.raises(UserError, match=sentence):
        checkpoint.save(config, "weights", tf.train.Checkpoint(x=value), 6)
    assert checkpoint.restore(config, "weights", tf.train.Checkpoint(x=value)) == 5


def test_a_record_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a crash the name could else stand for nothing."""
    synced, real = [], os.fsync
    monkeypatch.setattr("os.fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")) or real(file))
    config = DetectConfig(workdir=str(tmp_path), dataset="folder:cells")
    checkpoint.save(config, "weights", tf.train.Checkpoint(x=tf.Variable(3.0)), 5)
    assert f"{tmp_path}/detector/state.json.new" in synced
