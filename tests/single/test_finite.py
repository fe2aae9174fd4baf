"""A step whose numbers are not finite moves nothing, whatever learns from it, and says whose numbers they were."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import PretrainConfig
from instcls_tf.encoder import networks
from instcls_tf.encoder.bn_groups import Groups
from instcls_tf.errors import UserError
from instcls_tf.methods.diet import DIET
from instcls_tf.methods.instance import InstanceClassification
from instcls_tf.methods.moco_v2 import MoCoV2
from instcls_tf.methods.pic import PIC
from instcls_tf.methods.simclr import SimCLR
from instcls_tf.optimizer import MomentumSGD
from instcls_tf.pretraining import finite
from instcls_tf.pretraining.train_step import make_train_step

NUM_INSTANCES, SIZE, BATCH, RATE = 12, 4, 6, 0.1
CONFIG = PretrainConfig(learning_rate=RATE)


class Fault(tf.keras.layers.Layer):
    """Multiplies what passes, forwards or backwards, of one image of the batch."""

    def __init__(self):
        super().__init__()
        self.forward = tf.Variable(1.0, trainable=False)
        self.backward = tf.Variable(1.0, trainable=False)

    def call(self, rows):
        @tf.custom_gradient
        def pass_through(rows):
            def factors(value):
                return tf.tensor_scatter_nd_update(tf.ones_like(rows), [[3]], value * tf.ones_like(rows[:1]))

            return rows * factors(self.forward), lambda gradient: gradient * factors(self.backward)

        return pass_through(rows)


def encoder_with(fault: Fault | None = None) -> tf.keras.Model:
    layers = [tf.keras.layers.Flatten(input_shape=[2, 2, 3]), tf.keras.layers.BatchNormalization()]
    layers.append(tf.keras.layers.Dense(SIZE, use_bias=False))
    return tf.keras.Sequential([*layers, *([fault] if fault else [])])


def make_method(name: str, encoder: tf.keras.Model):
    if name == "simclr":
        return SimCLR()
    if name == "moco_v2":
        return MoCoV2(encoder, encoder_with(), queue_size=8, momentum=0.9)
    if name == "pic":
        return PIC(NUM_INSTANCES, SIZE, recent_negatives=4, longest_absence=8)
    if name == "diet":
        return DIET(NUM_INSTANCES, SIZE)
    layer = ShardedClassifier(NUM_INSTANCES, SIZE, smoothing=0.0, name="finite")
    layer.initialize_gaussian()
    return InstanceClassification(layer)


class Trial:
    """A training step of two views of six images, of which the second one's first view can be spoilt."""

    def __init__(self, method: str, scaled: bool = False):
        self.fault = Fault()
        self.encoder = encoder_with(self.fault)
        self.method = make_method(method, self.encoder)
        self.optimizer = MomentumSGD(RATE, 0.9, 1e-4)
        if scaled:
            self.optimizer = tf.keras.mixed_precision.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(self.encoder.trainable_variables)
        spec = tf.TensorSpec([None, 2, 2, 2, 3], tf.float32)
        self.step = make_train_step(self.encoder, self.method, self.optimizer, spec, BATCH, Groups(several=False))
        self.ids = tf.constant([5, 7, 1, 0, 11, -1])

    def take(self) -> finite.Health:
        views = np.random.default_rng(0).normal(size=[BATCH, 2, 2, 2, 3]).astype(np.float32)
        return self.step(tf.constant(views), self.ids, tf.constant(RATE)).health

    def state(self) -> list[np.ndarray]:
        """All that a step moves, but the number of steps and the scale of the loss."""
        method = self.method
        variables = [*self.encoder.trainable_variables, *networks.batch_norm_statistics(self.encoder)]
        variables += getattr(self.optimizer, "inner_optimizer", self.optimizer).momentums
        variables += [part.variable for part in method.sliced().values()]
        variables += [part for part in method.replicated().values() if isinstance(part, tf.Variable)]
        if isinstance(method, MoCoV2):
            variables += method.key_encoder.trainable_variables
        return [variable.numpy() for variable in variables]

    def refusal(self, health: finite.Health, config: PretrainConfig = CONFIG) -> str:
        with pytest.raises(UserError) as refusal:
            finite.refuse(health, 3, self.ids, config, lambda i: f"{i}.jpg")
        return str(refusal.value)


@pytest.mark.parametrize("method", ["instance", "simclr", "moco_v2", "pic", "diet"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_nothing_moves(method, direction):
    trial = Trial(method)
    getattr(trial.fault, direction).assign(np.nan)
    before = trial.state()
    health = trial.take()
    assert health.stops and not health.skipped and trial.optimizer.iterations == 0
    for value, expected in zip(trial.state(), before):
        np.testing.assert_array_equal(value, expected)
    getattr(trial.fault, direction).assign(1.0)
    health = trial.take()
    assert not health.stops and trial.optimizer.iterations == 1
    finite.refuse(health, 3, trial.ids, CONFIG, lambda i: i)
    moved = [np.any(value != expected) for value, expected in zip(trial.state(), before)]
    assert all(moved), "every variable moves in a step that is taken"


def test_the_key_encoder_follows_a_step_that_is_taken():
    """Eq. 2 of MoCo, towards the weights to which the step has brought the encoder."""
    trial = Trial("moco_v2")
    before = [variable.numpy() for variable in trial.encoder.trainable_variables]
    assert not trial.take().stops
    for mine, theirs, old in zip(
        trial.method.key_encoder.trainable_variables, trial.encoder.trainable_variables, before
    ):
        assert np.any(theirs != old)
        np.testing.assert_allclose(mine, 0.9 * old + 0.1 * theirs, rtol=1e-6)


def test_whose_numbers_they_were():
    trial = Trial("instance")
    trial.fault.forward.assign(np.inf)
    assert trial.refusal(trial.take()) == (
        "step 4: embeddings of worker 0 (instances 7: '7.jpg') are not finite, and the step was not taken on any"
        " worker (there is no checkpoint yet); if the run diverged, it needs a lower --learning_rate than 0.1 or a"
        " longer warm-up"
    )
    trial.fault.forward.assign(1.0)
    trial.fault.backward.assign(np.nan)
    share = "5: '5.jpg', 7: '7.jpg', 1: '1.jpg', 0: '0.jpg', 11: '11.jpg'"
    sentence = f"step 4: the encoder's gradient is not finite, from the share of worker 0 (instances {share}), and "
    assert trial.refusal(trial.take()).startswith(sentence)
    trial.fault.backward.assign(1.0)
    trial.method.classifier.local_weights.assign(np.full([NUM_INSTANCES, SIZE], np.nan))
    assert trial.refusal(trial.take()).startswith("step 4: the loss is nan, and ")


def test_what_helps_is_not_what_the_workdir_refuses(tmp_path):
    """A run that has saved goes on with its own flags alone: others are for another folder."""
    trial = Trial("instance")
    trial.fault.forward.assign(np.inf)
    config = CONFIG.replace(workdir=str(tmp_path), precision="mixed_bfloat16")
    health = trial.take()
    assert trial.refusal(health, config).endswith(" warm-up, or --precision=float32 instead of mixed_bfloat16")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-00000003.index").touch()
    sentence = trial.refusal(health, config)
    assert "the last good checkpoint is that of step 3" in sentence
    assert sentence.endswith(
        f"float32 instead of mixed_bfloat16: in another folder, with --init={tmp_path} to begin from that checkpoint"
    )


def test_a_gradient_that_a_relu_hides():
    gradient, spoilt = tf.ones([3]), tf.constant([[0.0, np.nan]])
    assert not np.isfinite(finite.mixed_in(gradient, spoilt)).any()
    np.testing.assert_array_equal(finite.mixed_in(gradient, tf.constant([[0.5, -7.0]])), gradient)


@pytest.mark.parametrize("method", ["instance", "moco_v2", "pic", "diet"])
def test_loss_scaling_skips_a_step_as_a_whole(method):
    trial = Trial(method, scaled=True)
    scale, iterations = float(trial.optimizer.loss_scale), int(trial.optimizer.iterations)
    before = trial.state()
    trial.fault.backward.assign(np.inf)
    health = trial.take()
    assert health.skipped and not health.stops
    for value, expected in zip(trial.state(), before):
        np.testing.assert_array_equal(value, expected)
    assert (float(trial.optimizer.loss_scale), int(trial.optimizer.iterations)) == (scale / 2, iterations + 1)
    # No scale helps against what is not an overflow.
    while health.skipped:
        health = trial.take()
    assert health.stops and float(trial.optimizer.loss_scale) == 1
