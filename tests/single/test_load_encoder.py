"""The encoder of a run, brought back from its newest checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.optimizer import MomentumSGD
from instcls_tf.run import checkpoint
from instcls_tf.run.encoder import load_encoder
from instcls_tf.run.workdir import checkpoint_folder, run_flags_path
from tests.single.test_checkpoint import make_state

CONFIG = PretrainConfig(encoder="resnet18", width_multiplier=0.125, stem="small", embedding_size=16, seed=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[str, tf.keras.Model]:
    """A run whose encoder, BN statistics included, is not what the seed gives."""
    workdir = str(tmp_path_factory.mktemp("run"))
    Path(run_flags_path(workdir)).write_text(CONFIG.replace(workdir=workdir).as_flags())
    encoder, random = networks.make_encoder(CONFIG), np.random.default_rng(1)
    encoder.set_weights([np.abs(random.normal(size=value.shape)) + 0.1 for value in encoder.get_weights()])
    optimizer = MomentumSGD(0.1, 0.9, 1e-4)
    optimizer.build(encoder.trainable_variables)
    checkpoint.save(workdir, 1, tf.train.Checkpoint(encoder=encoder, optimizer=optimizer), make_state()[1])
    return workdir, encoder


def test_precision_is_of_the_encoder_alone():
    half, full = networks.make_encoder(CONFIG, "mixed_bfloat16"), networks.make_encoder(CONFIG)
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    for encoder, dtype in ((half, "bfloat16"), (full, "float32")):
        assert encoder.get_layer("backbone").get_layer("conv1").compute_dtype == dtype
        assert encoder(tf.zeros([1, 8, 8, 3])).dtype == tf.float32
    for variable, expected in zip(half.get_weights(), full.get_weights()):
        np.testing.assert_array_equal(variable, expected)
    with pytest.raises(UserError):
        networks.make_encoder(CONFIG.replace(encoder="vgg"), "mixed_bfloat16")
    assert tf.keras.mixed_precision.global_policy().name == "float32"


def test_load_encoder_brings_everything_back(trained):
    workdir, encoder = trained
    loaded = load_encoder(workdir)
    assert [variable.name for variable in loaded.variables] == [variable.name for variable in encoder.variables]
    for variable, expected in zip(loaded.get_weights(), encoder.get_weights()):
        np.testing.assert_array_equal(variable, expected)


def test_load_encoder_needs_a_run_and_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=f"^--workdir={tmp_path}: holds no run"):
        load_encoder(str(tmp_path))
    Path(run_flags_path(str(tmp_path))).write_text(CONFIG.as_flags())
    with pytest.raises(UserError) as refusal:
        load_encoder(str(tmp_path))
    assert str(refusal.value) == f"--workdir={tmp_path}: the run has not saved a checkpoint yet"


@pytest.mark.parametrize("changes", [{"embedding_size": 8}, {"encoder": "resnet50"}])
def test_load_encoder_refuses_another_network(trained, tmp_path, changes):
    workdir, _ = trained
    Path(run_flags_path(str(tmp_path))).write_text(CONFIG.replace(**changes).as_flags())
    os.symlink(checkpoint_folder(workdir), checkpoint_folder(str(tmp_path)))
    prefix = checkpoint.latest(str(tmp_path))
    with pytest.raises(UserError, match=f"^{prefix}: cannot restore this checkpoint: "):
        load_encoder(str(tmp_path))
