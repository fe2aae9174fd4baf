"""Checkpoints of one worker: what comes back, what is kept, and what is said about a damaged one."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.errors import MachineError, UserError
from instcls_tf.run import checkpoint, checkpoint_choice, checkpoint_manifest, parts
from instcls_tf.run.checkpoint_manifest import Origin
from instcls_tf.run.parts import Slices

NUM_INSTANCES, SIZE = 53, 6


def make_state(value: float = 1.0) -> tuple[tf.train.Checkpoint, dict[str, Slices]]:
    """A replicated variable and two split tensors, of which this worker has everything."""
    rows = np.random.default_rng(1).normal(size=[NUM_INSTANCES, SIZE]) * value
    replicated = tf.train.Checkpoint(kernel=tf.Variable(tf.range(12.0) * value))
    sliced = {
        "classifier/rows": tf.Variable(rows, dtype=tf.float32),
        "classifier/lists": tf.Variable(tf.reshape(tf.range(NUM_INSTANCES * 2), [-1, 2]) * int(value)),
    }
    return replicated, {name: Slices(variable, 0, NUM_INSTANCES) for name, variable in sliced.items()}


def assert_equal(state, other) -> None:
    np.testing.assert_array_equal(state[0].kernel, other[0].kernel)
    for name, part in state[1].items():
        np.testing.assert_array_equal(part.variable, other[1][name].variable)


@pytest.fixture
def saved(tmp_path, monkeypatch) -> str:
    """The prefix of a checkpoint whose tensors went through several chunks."""
    monkeypatch.setattr(parts, "CHUNK_ROWS", 20)
    return checkpoint.save(str(tmp_path), 7, *make_state())


def refusal_of(prefix: str, state=None) -> str:
    with pytest.raises(UserError) as refusal:
        checkpoint.restore(prefix, *(state or make_state(0.0)))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_comes_back_exactly(tmp_path, saved):
    assert saved == checkpoint.latest(str(tmp_path)) == str(tmp_path / "checkpoints" / "ckpt-00000007")
    state = make_state(0.0)
    checkpoint.restore(saved, *state)
    assert_equal(state, make_state())


def test_any_reader_sees_whole_tensors(saved):
    reader = tf.train.load_checkpoint(saved)
    for name, part in make_state()[1].items():
        np.testing.assert_array_equal(reader.get_tensor(name), part.variable)


def test_a_worker_reads_its_own_slice(saved):
    variable = tf.Variable(tf.zeros([21, SIZE]))
    checkpoint.restore(saved, make_state(0.0)[0], {"classifier/rows": Slices(variable, 18, NUM_INSTANCES)})
    np.testing.assert_array_equal(variable, make_state()[1]["classifier/rows"].variable[18:39])


def test_the_folder_of_a_run_may_move(tmp_path, saved):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    os.rename(tmp_path / "checkpoints", moved / "checkpoints")
    state = make_state(0.0)
    checkpoint.restore(checkpoint.latest(str(moved)), *state)
    assert_equal(state, make_state())


def test_the_newest_two_are_kept(tmp_path):
    for step in (1, 2, 10, 100):
        checkpoint.save(str(tmp_path), step, *make_state(step))
    names = {Path(path).stem for path in glob.glob(str(tmp_path / "checkpoints" / "ckpt-*"))}
    assert names == {"ckpt-00000010", "ckpt-00000100"}
    assert not glob.glob(str(tmp_path / "checkpoints" / ".*"))
    for step in (10, 100):
        state = make_state(0.0)
        checkpoint.restore(str(tmp_path / "checkpoints" / f"ckpt-{step:08d}"), *state)
        assert_equal(state, make_state(step))
    assert checkpoint.latest(str(tmp_path)).endswith("ckpt-00000100")
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")) == checkpoint.latest(str(tmp_path))


def test_no_checkpoint_yet(tmp_path):
    assert checkpoint.latest(str(tmp_path)) is None
    (tmp_path / "checkpoints").mkdir()
    assert checkpoint.latest(str(tmp_path)) is None


def test_holds(saved):
    assert checkpoint.holds(saved, "classifier/lists")
    assert not checkpoint.holds(saved, "classifier/list")


def test_an_interrupted_save_does_no_harm(tmp_path, saved):
    for step in (8, 9):
        parts = tmp_path / "checkpoints" / f".writing-{step:08d}"
        parts.mkdir()
        for name in ("rank00000-00000", "rank00001-00000", "replicated"):
            (parts / f"{name}.index").write_bytes(b"half")
    assert checkpoint.latest(str(tmp_path)) == saved
    state = make_state(0.0)
    checkpoint.restore(saved, *state)
    assert_equal(state, make_state())
    # The run comes to the same step again, and finishes it now.
    prefix = checkpoint.save(str(tmp_path), 9, *make_state(2.0))
    state = make_state(0.0)
    checkpoint.restore(prefix, *state)
    assert_equal(state, make_state(2.0))


@pytest.mark.parametrize(
    ("said", "reason", "kind"),
    [
        ("stale handle", "stale handle", MachineError),
        ("x; No space left on device", "No space left on device", UserError),
    ],
)
def test_a_save_that_fails_leaves_the_previous_one(tmp_path, saved, monkeypatch, said, reason, kind):
    def fail(**_):
        raise tf.errors.ResourceExhaustedError(None, None, said)

    monkeypatch.setattr(tf.raw_ops, "MergeV2Checkpoints", fail)
    with pytest.raises(UserError) as refusal:
        checkpoint.save(str(tmp_path), 8, *make_state(2.0))
    assert type(refusal.value) is kind, "a full disk is a person's to mend, what may pass is not"
    folder = tmp_path / "checkpoints"
    assert re.fullmatch(
        re.escape(f"--workdir={tmp_path}: cannot write the checkpoint of step 8 to {folder} ({reason}; ")
        + r"[\d.]+ MB are free there\); the last good checkpoint is that of step 7, from which the same"
        r" command goes on",
        str(refusal.value),
    )
    assert not list(folder.glob(".writing-*"))
    assert checkpoint.latest(str(tmp_path)) == saved
    state = make_state(0.0)
    checkpoint.restore(saved, *state)
    assert_equal(state, make_state())


# --------------------------------------------------------------------------------------------------------- refusals


def test_a_missing_tensor(saved):
    replicated, sliced = make_state(0.0)
    sliced["classifier/momentum"] = sliced["classifier/rows"]
    assert refusal_of(saved, (replicated, sliced)) == f"{saved}: the checkpoint has no classifier/momentum"


def test_a_missing_variable(saved):
    replicated = tf.train.Checkpoint(kernel=tf.Variable(tf.zeros([12])), bias=tf.Variable(0.0))
    assert refusal_of(saved, (replicated, {})).startswith(f"{saved}: cannot restore this checkpoint: ")


@pytest.mark.parametrize("total", [52, 54])
def test_another_number_of_instances(saved, total):
    replicated, _ = make_state(0.0)
    sliced = {"classifier/rows": Slices(tf.Variable(tf.zeros([total, SIZE])), 0, total)}
    sentence = f"{saved}: was made for 53 instances, the dataset has {total} now"
    assert refusal_of(saved, (replicated, sliced)) == sentence


def test_another_embedding_size(saved):
    sliced = {"classifier/rows": Slices(tf.Variable(tf.zeros([NUM_INSTANCES, 5])), 0, NUM_INSTANCES)}
    assert refusal_of(saved, (make_state(0.0)[0], sliced)).startswith(f"{saved}: cannot restore this checkpoint: ")


def data_files(prefix: str) -> list[str]:
    """The files that hold tensors; they are of one to a few chunks each."""
    return sorted(path for path in glob.glob(prefix + ".data-*"))


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-3], lambda content: b"", None])
def test_damaged_data(saved, damage):
    files = data_files(saved)
    assert len(files) >= 3
    for path in files:
        content = Path(path).read_bytes()
        if damage is None:
            os.remove(path)
        else:
            Path(path).write_bytes(damage(content))
        assert refusal_of(saved).startswith(f"{saved}: cannot restore this checkpoint: ")
        Path(path).write_bytes(content)
    checkpoint.restore(saved, *make_state(0.0))


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-3], lambda content: b""])
def test_damaged_index(saved, damage):
    index = Path(saved + ".index")
    index.write_bytes(damage(index.read_bytes()))
    assert refusal_of(saved).startswith(f"{saved}: cannot restore this checkpoint: ")
    with pytest.raises(UserError, match=f"^{saved}: cannot restore this checkpoint: "):
        checkpoint.holds(saved, "classifier/rows")


def test_a_lost_index(tmp_path, saved):
    os.remove(saved + ".index")
    with pytest.raises(UserError) as refusal:
        checkpoint.latest(str(tmp_path))
    assert str(refusal.value) == f"--workdir={tmp_path}: none of its checkpoints can be used: {saved}.index: is missing"


@pytest.mark.parametrize("content", ["", "model_checkpoint_", "\0\0\0", None, 'model_checkpoint_path: "ckpt-00000003"'])
def test_a_damaged_record_of_the_newest(tmp_path, saved, capsys, content):
    """Not taken for a run that has saved nothing, which would begin anew and overwrite it."""
    record = tmp_path / "checkpoints" / "checkpoint"
    if content is None:
        record.unlink()
    else:
        record.write_text(content)
    assert checkpoint.latest(str(tmp_path)) == saved
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and str(record) in said
    assert said.endswith(": the newest checkpoint, that of step 7, is whole and taken\n")


def test_a_record_without_checkpoints(tmp_path, saved):
    for path in (tmp_path / "checkpoints").glob("ckpt-*"):
        path.unlink()
    with pytest.raises(UserError, match="names ckpt-00000007, but no file of any checkpoint is there"):
        checkpoint.latest(str(tmp_path))


# ---------------------------------------------------------------------------------------------- whole or not there


def test_a_manifest_tells_what_a_checkpoint_is(tmp_path):
    origin = Origin("f00d", {"epochs": "3"}, "5eed")
    prefix = checkpoint.save(str(tmp_path), 7, *make_state(), origin)
    manifest = checkpoint_manifest.read(prefix)
    assert (manifest.step, manifest.workers, manifest.origin) == (7, 1, origin)
    assert manifest.rows == {"classifier/rows": NUM_INSTANCES, "classifier/lists": NUM_INSTANCES}
    names = {path.name for path in (tmp_path / "checkpoints").glob("ckpt-*") if path.suffix != ".json"}
    assert manifest.files.keys() == names
    assert checkpoint_manifest.damage(prefix, whole=True) == ""
    state = make_state(0.0)
    checkpoint.restore(prefix, *state, origin)
    assert_equal(state, make_state())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"run_id": "beef"}, "belongs to another run (f00d) than this folder's (beef)"),
        ({"recipe": {"epochs": "4"}}, "was made with --epochs=3, this run has --epochs=4"),
        ({"dataset": "0"}, "was made with other images under the same --dataset (their digest was 5eed, now it is 0)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_something_else(tmp_path, changes, sentence):
    origin = Origin("f00d", {"epochs": "3"}, "5eed")
    prefix = checkpoint.save(str(tmp_path), 7, *make_state(), origin)
    with pytest.raises(UserError) as refusal:
        checkpoint.restore(prefix, *make_state(0.0), dataclasses.replace(origin, **changes))
    assert str(refusal.value) == f"{prefix}: {sentence}: this checkpoint cannot be continued here"


def spoil(prefix: str, what: str) -> str:
    """Damages one file of a checkpoint; its path."""
    path = Path({"data": data_files(prefix)[0], "lost data": data_files(prefix)[0]}.get(what, f"{prefix}.{what}"))
    if what.startswith("lost"):
        path.unlink()
    else:
        path.write_bytes(flip(path.read_bytes()) if what != "json" else path.read_bytes()[:-9])
    return str(path)


@pytest.mark.parametrize("what", ["data", "index", "json", "lost data"])
def test_a_damaged_newest_one_is_left_for_the_one_before(tmp_path, what):
    for step in (7, 9):
        checkpoint.save(str(tmp_path), step, *make_state(step), Origin("f00d"))
    newest = checkpoint_choice.prefix_of(str(tmp_path), 9)
    path = spoil(newest, what)
    choice = checkpoint_choice.choose(str(tmp_path), whole=True, wanted=Origin("f00d"))
    assert choice.prefix == checkpoint_choice.prefix_of(str(tmp_path), 7)
    (warning,) = choice.warnings
    assert warning.startswith(f"{path}: ") and warning.endswith(": the older checkpoint of step 7 is taken")
    # The run goes on and saves the next one: what it has left behind goes.
    checkpoint.save(str(tmp_path), 8, *make_state(8), Origin("f00d"))
    assert {Path(path).stem for path in glob.glob(str(tmp_path / "checkpoints" / "ckpt-*"))} == {
        "ckpt-00000007",
        "ckpt-00000008",
    }


@pytest.mark.parametrize("what", ["data", "index"])
def test_a_damaged_one_of_an_earlier_version(tmp_path, saved, what):
    """Without a manifest TensorFlow's own checksums tell."""
    os.remove(checkpoint_manifest.path_of(saved))
    assert checkpoint_choice.choose(str(tmp_path), whole=True) == (saved, ())
    spoil(saved, what)
    with pytest.raises(UserError, match=r"none of its checkpoints can be used: .*: damaged "):
        checkpoint_choice.choose(str(tmp_path), whole=True)


def test_a_checkpoint_of_another_run_is_neither_taken_nor_removed(tmp_path):
    checkpoint.save(str(tmp_path), 9, *make_state(9), Origin("beef"))
    with pytest.raises(UserError, match=r"ckpt-00000009: belongs to another run \(beef\) than this folder's \(f00d\)"):
        checkpoint_choice.choose(str(tmp_path), wanted=Origin("f00d"))
    checkpoint.save(str(tmp_path), 7, *make_state(7), Origin("f00d"))
    choice = checkpoint_choice.choose(str(tmp_path), wanted=Origin("f00d"))
    assert choice.prefix == checkpoint_choice.prefix_of(str(tmp_path), 7)
    assert len(choice.warnings) == 1


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_stay_as_wanted(tmp_path, keep):
    for step in range(1, 6):
        checkpoint.save(str(tmp_path), step, *make_state(step), keep=keep)
    assert [checkpoint_choice.step_of(prefix) for prefix in checkpoint_choice.prefixes(str(tmp_path))] == [
        *range(6 - keep, 6)
    ]


@pytest.mark.parametrize("name", ["kernel", "classifier/rows"])
def test_values_that_are_not_finite_are_neither_saved_nor_restored(tmp_path, saved, monkeypatch, name):
    replicated, sliced = make_state(2.0)
    variable = replicated.kernel if name == "kernel" else sliced[name].variable
    variable.assign(tf.tensor_scatter_nd_update(variable, [[3] * len(variable.shape)], [np.inf]))
    with pytest.raises(UserError) as refusal:
        checkpoint.save(str(tmp_path), 8, replicated, sliced)
    assert re.fullmatch(
        r"step 8 is not saved \(the last good checkpoint is that of step 7\): .* has values that are not finite",
        str(refusal.value),
    )
    assert checkpoint.latest(str(tmp_path)) == saved
    monkeypatch.setattr(checkpoint, "refuse_not_finite", lambda *_: None)  # as earlier versions saved it
    prefix = checkpoint.save(str(tmp_path), 8, replicated, sliced)
    monkeypatch.undo()
    assert "has values that are not finite" in refusal_of(prefix)
