"""SGD as in torch.optim.SGD, as a Keras optimiser, and its schedule."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.optimizer import Extended, MomentumSGD, WarmupCosine, momentum_update
from tests import reference
from tests.reference import relative_error

MOMENTUM, DECAY = 0.9, 0.01


class Halving(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A rate that changes with every step."""

    def __call__(self, step):
        return 0.5 ** tf.cast(step, tf.float32)


def make_variables() -> list[tf.Variable]:
    """A kernel and a bias."""
    random = np.random.default_rng(1)
    return [tf.Variable(random.normal(size=shape), dtype=tf.float32) for shape in ([4, 3], [3])]


def gradients(step: int) -> list[tf.Tensor]:
    random = np.random.default_rng(10 + step)
    return [tf.constant(random.normal(size=shape), tf.float32) for shape in ([4, 3], [3])]


def train(optimizer, variables, steps) -> None:
    for step in steps:
        optimizer.apply_gradients(zip(gradients(step), variables))


def reference_after(steps: int) -> list[np.ndarray]:
    values = [variable.numpy().astype(np.float64) for variable in make_variables()]
    buffers = [np.zeros_like(value) for value in values]
    for step in range(steps):
        for i, gradient in enumerate(gradients(step)):
            values[i], buffers[i] = reference.sgd(
                values[i], gradient.numpy(), buffers[i], 0.5**step, MOMENTUM, weight_decay=DECAY
            )
    return values


def test_equals_reference_while_the_learning_rate_changes():
    variables, optimizer = make_variables(), MomentumSGD(Halving(), MOMENTUM, DECAY)
    train(optimizer, variables, range(5))
    for variable, expected in zip(variables, reference_after(5)):
        assert relative_error(variable, expected) < 1e-6
    assert optimizer.iterations == 5


def test_in_a_graph():
    variables, optimizer = make_variables(), MomentumSGD(Halving(), MOMENTUM, DECAY)
    optimizer.build(variables)

    @tf.function
    def step(*of_variables):
        optimizer.apply_gradients(zip(of_variables, variables))

    for number in range(5):
        step(*gradients(number))
    for variable, expected in zip(variables, reference_after(5)):
        assert relative_error(variable, expected) < 1e-6


def test_by_hand():
    # momentum 0.5 * 2 + (3 + 0.1 * 10) = 5; variable 10 - 0.2 * 5 = 9
    new = momentum_update(10.0, 3.0, 2.0, learning_rate=0.2, momentum_factor=0.5, weight_decay=0.1)
    assert new == pytest.approx((9.0, 5.0))


def test_every_variable_decays_biases_too():
    variables = make_variables()
    before = [variable.numpy() for variable in variables]
    optimizer = MomentumSGD(0.5, MOMENTUM, DECAY)
    optimizer.apply_gradients((tf.zeros_like(variable), variable) for variable in variables)
    for variable, value in zip(variables, before):
        np.testing.assert_allclose(variable, value * (1 - 0.5 * DECAY), rtol=1e-6)


def test_schedule_at_its_corners():
    schedule = WarmupCosine(peak=2.0, warmup_steps=4, total_steps=12)
    rates = [float(schedule(step)) for step in range(14)]
    np.testing.assert_allclose(rates[:5], [0.4, 0.8, 1.2, 1.6, 2.0], rtol=1e-6)
    assert rates[6] == pytest.approx(1 + np.cos(np.pi / 4))
    assert rates[8] == pytest.approx(1.0)  # half-way
    np.testing.assert_allclose(rates[12:], 0, atol=1e-6)
    assert (np.diff(rates[4:13]) < 0).all()
    assert schedule(tf.constant(3, tf.int64)).dtype == tf.float32


def test_schedule_without_warmup_or_without_cosine():
    assert float(WarmupCosine(2.0, 0, 10)(0)) == pytest.approx(2.0)
    assert float(WarmupCosine(2.0, 0, 10)(5)) == pytest.approx(1.0)
    assert float(WarmupCosine(2.0, 5, 5)(4)) == pytest.approx(2.0 * 5 / 6)
    assert np.isfinite(float(WarmupCosine(2.0, 5, 5)(5)))


def test_optimizer_follows_the_schedule():
    variable = tf.Variable(0.0)
    optimizer = MomentumSGD(WarmupCosine(2.0, 4, 12), momentum=0.0, weight_decay=0.0)
    moves = []
    for _ in range(12):
        before = variable.numpy()
        optimizer.apply_gradients([(tf.constant(1.0), variable)])
        moves.append(before - variable.numpy())
    np.testing.assert_allclose(moves, [float(WarmupCosine(2.0, 4, 12)(step)) for step in range(12)], rtol=1e-5)


def test_loss_scaling_changes_nothing_but_skips_overflows():
    variables = make_variables()
    optimizer = tf.keras.mixed_precision.LossScaleOptimizer(MomentumSGD(Halving(), MOMENTUM, DECAY))
    optimizer.build(variables)
    for step in range(3):
        scaled = [gradient * optimizer.get_scaled_loss(tf.constant(1.0)) for gradient in gradients(step)]
        optimizer.apply_gradients(zip(optimizer.get_unscaled_gradients(scaled), variables))
    before = [variable.numpy() for variable in variables]
    for value, expected in zip(before, reference_after(3)):
        assert relative_error(value, expected) < 1e-6
    kernel, bias = gradients(3)
    scale = float(optimizer.loss_scale)
    optimizer.apply_gradients(zip([kernel * np.inf, bias], variables))
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(variable, value)
    assert optimizer.loss_scale == scale / 2
    assert optimizer.iterations == 4  # it counts the steps of the run, skipped ones included


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, tf.keras.mixed_precision.LossScaleOptimizer])
def test_checkpoint_goes_on_where_it_was(tmp_path, wrap):
    variables, optimizer = make_variables(), wrap(MomentumSGD(Halving(), MOMENTUM, DECAY))
    train(optimizer, variables, range(3))
    path = tf.train.Checkpoint(optimizer=optimizer, variables=variables).write(str(tmp_path / "checkpoint"))
    others, other = make_variables(), wrap(MomentumSGD(Halving(), MOMENTUM, DECAY))
    other.build(others)
    tf.train.Checkpoint(optimizer=other, variables=others).read(path).assert_consumed()
    assert other.iterations == 3
    train(other, others, range(3, 5))
    for variable, expected in zip(others, reference_after(5)):
        assert relative_error(variable, expected) < 1e-6


SCHEDULES = {
    "warmup": WarmupCosine(2.0, 4, 12),
    "extended": Extended(WarmupCosine(2.0, 2, 8), 8, WarmupCosine(1.0, 1, 4)),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_config_makes_the_same_schedule_again(schedule):
    text = json.dumps(tf.keras.optimizers.schedules.serialize(schedule))
    for again in (
        type(schedule).from_config(schedule.get_config()),
        tf.keras.optimizers.schedules.deserialize(json.loads(text)),
    ):
        assert [float(again(step)) for step in range(12)] == [float(schedule(step)) for step in range(12)]


@pytest.mark.parametrize("rate", [0.25, *SCHEDULES.values()], ids=["constant", *SCHEDULES])
def test_config_makes_the_same_optimizer_again(rate):
    optimizer = MomentumSGD(rate, 0.8, 0.03, name="mine")
    text = json.dumps(tf.keras.optimizers.serialize(optimizer))
    for again in (
        MomentumSGD.from_config(optimizer.get_config()),
        tf.keras.optimizers.deserialize(json.loads(text)),
    ):
        assert (again.name, again.momentum_factor, again.l2_weight_decay) == ("mine", 0.8, 0.03)
        assert float(again.learning_rate) == float(optimizer.learning_rate)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_compiled_model_goes_on_after_it_was_saved(tmp_path, schedule):
    random = np.random.default_rng(1)
    x, y = random.normal(size=[8, 4]).astype(np.float32), random.normal(size=[8, 3]).astype(np.float32)
    model = tf.keras.Sequential([tf.keras.layers.Dense(3, input_shape=[4])])
    model.compile(MomentumSGD(schedule, MOMENTUM, DECAY), "mse")
    for _ in range(3):
        model.train_on_batch(x, y)
    path = str(tmp_path / "model.keras")
    model.save(path)
    again = tf.keras.models.load_model(path)
    assert type(again.optimizer) is MomentumSGD and again.optimizer.iterations == 3
    for one in (model, again):
        one.train_on_batch(x, y)
    for mine, its in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_allclose(its, mine, rtol=1e-5, atol=1e-6)


def test_an_extension_begins_anew():
    schedule = Extended(WarmupCosine(2.0, 2, 8), 8, WarmupCosine(2.0, 1, 4))
    expected = [WarmupCosine(2.0, 2, 8)(step) for step in range(8)] + [
        WarmupCosine(2.0, 1, 4)(step) for step in range(4)
    ]
    np.testing.assert_allclose([schedule(step) for step in range(12)], expected)
    assert schedule(7) < 0.2 and schedule(9) == 2.0
