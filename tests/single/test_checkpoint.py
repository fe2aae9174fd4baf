"""Checkpoints of one worker: what comes back, what is kept, and what is said about a damaged one."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import checkpoint
from instcls_tf.checkpoint import Slices
from instcls_tf.config import PretrainConfig, run_flags_path
from instcls_tf.errors import UserError
from instcls_tf.optimizer import MomentumSGD

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
    monkeypatch.setattr(checkpoint, "_CHUNK_ROWS", 20)
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


def test_a_save_that_fails_leaves_the_previous_one(tmp_path, saved, monkeypatch):
    def no_space(**_):
        raise tf.errors.ResourceExhaustedError(None, None, "no space left")

    monkeypatch.setattr(tf.raw_ops, "MergeV2Checkpoints", no_space)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        checkpoint.save(str(tmp_path), 8, *make_state(2.0))
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
    assert str(refusal.value) == f"--workdir={tmp_path}: its newest checkpoint has lost the file {saved}.index"


@pytest.mark.parametrize("content", ["", "model_checkpoint_", "\0\0\0"])
def test_a_damaged_record_of_the_newest(tmp_path, saved, content):
    """Not taken for a run that has saved nothing, which would begin anew and overwrite it."""
    record = tmp_path / "checkpoints" / "checkpoint"
    record.write_text(content)
    with pytest.raises(UserError) as refusal:
        checkpoint.latest(str(tmp_path))
    sentence = f"--workdir={tmp_path}: cannot understand {record}, which names the newest checkpoint"
    assert str(refusal.value) == sentence


# ---------------------------------------------------------------------------------------------------------- encoder


CONFIG = PretrainConfig(encoder="resnet18", width_multiplier=0.125, stem="small", embedding_size=16, seed=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[str, tf.keras.Model]:
    """A run whose encoder, BN statistics included, is not what the seed gives."""
    workdir = str(tmp_path_factory.mktemp("run"))
    Path(run_flags_path(workdir)).write_text(CONFIG.replace(workdir=workdir).as_flags())
    encoder, random = checkpoint.make_encoder(CONFIG), np.random.default_rng(1)
    encoder.set_weights([np.abs(random.normal(size=value.shape)) + 0.1 for value in encoder.get_weights()])
    optimizer = MomentumSGD(0.1, 0.9, 1e-4)
    optimizer.build(encoder.trainable_variables)
    checkpoint.save(workdir, 1, tf.train.Checkpoint(encoder=encoder, optimizer=optimizer), make_state()[1])
    return workdir, encoder


def test_precision_is_of_the_encoder_alone():
    half, full = checkpoint.make_encoder(CONFIG, "mixed_bfloat16"), checkpoint.make_encoder(CONFIG)
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    for encoder, dtype in ((half, "bfloat16"), (full, "float32")):
        assert encoder.get_layer("backbone").get_layer("conv1").compute_dtype == dtype
        assert encoder(tf.zeros([1, 8, 8, 3])).dtype == tf.float32
    for variable, expected in zip(half.get_weights(), full.get_weights()):
        np.testing.assert_array_equal(variable, expected)
    with pytest.raises(UserError):
        checkpoint.make_encoder(CONFIG.replace(encoder="vgg"), "mixed_bfloat16")
    assert tf.keras.mixed_precision.global_policy().name == "float32"


def test_load_encoder_brings_everything_back(trained):
    workdir, encoder = trained
    loaded = checkpoint.load_encoder(workdir)
    assert [variable.name for variable in loaded.variables] == [variable.name for variable in encoder.variables]
    for variable, expected in zip(loaded.get_weights(), encoder.get_weights()):
        np.testing.assert_array_equal(variable, expected)


def test_load_encoder_needs_a_run_and_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=f"^--workdir={tmp_path}: holds no run"):
        checkpoint.load_encoder(str(tmp_path))
    Path(run_flags_path(str(tmp_path))).write_text(CONFIG.as_flags())
    with pytest.raises(UserError) as refusal:
        checkpoint.load_encoder(str(tmp_path))
    assert str(refusal.value) == f"--workdir={tmp_path}: the run has not saved a checkpoint yet"


@pytest.mark.parametrize("changes", [{"embedding_size": 8}, {"encoder": "resnet50"}])
def test_load_encoder_refuses_another_network(trained, tmp_path, changes):
    workdir, _ = trained
    Path(run_flags_path(str(tmp_path))).write_text(CONFIG.replace(**changes).as_flags())
    os.symlink(checkpoint.checkpoint_folder(workdir), checkpoint.checkpoint_folder(str(tmp_path)))
    prefix = checkpoint.latest(str(tmp_path))
    with pytest.raises(UserError, match=f"^{prefix}: cannot restore this checkpoint: "):
        checkpoint.load_encoder(str(tmp_path))
