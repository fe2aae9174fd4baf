"""The paper's optimiser: SGD with momentum, L2 weight decay, linear warm-up and cosine annealing."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf


def momentum_update(
    variable: Any, gradient: Any, momentum: Any, *, learning_rate: Any, momentum_factor: float, weight_decay: float
) -> tuple[Any, Any]:
    """One step of SGD as in `torch.optim.SGD`, on tensors or arrays of one shape.

    The decay joins the gradient before the momentum, and the learning rate multiplies the momentum when it is applied,
    not when it is accumulated (Keras' SGD does the latter, which differs whenever the rate changes).

    Args:
      variable: of any shape.
      gradient: of the loss, for the variable.
      momentum: what earlier steps have accumulated.
      learning_rate: of this step, a number or a scalar tensor.
      momentum_factor: what remains of the momentum (the paper: 0.9).
      weight_decay: the L2 coefficient (the paper: 1e-4).

    Returns:
      `(new variable, new momentum)`.
    """
    momentum = momentum_factor * momentum + (gradient + weight_decay * variable)
    return variable - learning_rate * momentum, momentum


@tf.keras.utils.register_keras_serializable("instcls_tf")
class MomentumSGD(tf.keras.optimizers.Optimizer):
    """`momentum_update` for the replicated variables, as a Keras optimiser.

    Args:
      learning_rate: a float or a Keras schedule.
      momentum: the momentum factor (the paper: 0.9).
      weight_decay: the L2 coefficient (the paper: 1e-4), applied to every variable, biases and BN included.
    """

    def __init__(self, learning_rate: Any, momentum: float, weight_decay: float, name: str = "momentum_sgd"):
        # Keras' own `weight_decay` argument is a decoupled decay, hence not passed on.
        super().__init__(name=name, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum_factor = momentum
        self.l2_weight_decay = weight_decay

    def build(self, var_list: list[tf.Variable]) -> None:
        """Makes one momentum slot per variable."""
        super().build(var_list)
        if not getattr(self, "_built", False):
            self.momentums = [self.add_variable_from_reference(v, "momentum") for v in var_list]
            self._built = True

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Moves one variable; `gradient` has its shape and dtype."""
        slot = self.momentums[self._index_dict[self._var_key(variable)]]
        # TensorFlow's kernel is the rest of `momentum_update` in one pass over the numbers; as many operations as the
        # formula has, each with its pass, took 8 % of a ResNet-50's step.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=slot.handle,
            lr=tf.cast(self.learning_rate, variable.dtype),
            grad=gradient + self.l2_weight_decay * variable,
            momentum=tf.cast(self.momentum_factor, variable.dtype),
        )

    def get_config(self) -> dict[str, Any]:
        """Keras' description of the optimiser."""
        return {
            "name": self.name,
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "momentum": self.momentum_factor,
            "weight_decay": self.l2_weight_decay,
        }


@tf.keras.utils.register_keras_serializable("instcls_tf")
class Extended(tf.keras.optimizers.schedules.LearningRateSchedule):
    """One schedule after another.

    Args:
      first: of the steps before `begin`.
      begin: the first step of the second.
      second: counts its steps from 0.
    """

    def __init__(self, first: WarmupCosine, begin: int, second: WarmupCosine):
        self.first, self.begin, self.second = first, begin, second

    def __call__(self, step: Any) -> tf.Tensor:
        """The learning rate of `step` (float32 scalar)."""
        step = tf.cast(step, tf.float32)
        return tf.where(step < self.begin, self.first(step), self.second(step - self.begin))

    def get_config(self) -> dict[str, Any]:
        """Keras' description of the schedule."""
        serialize = tf.keras.optimizers.schedules.serialize
        return {"first": serialize(self.first), "begin": self.begin, "second": serialize(self.second)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Extended:
        """The schedule that Keras has described."""
        both = {name: tf.keras.optimizers.schedules.deserialize(config[name]) for name in ("first", "second")}
        return cls(**{**config, **both})


@tf.keras.utils.register_keras_serializable("instcls_tf")
class WarmupCosine(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 to `peak`, then half a cosine to 0.

    Args:
      peak: the highest learning rate.
      warmup_steps: steps of the linear part; step `warmup_steps` is the first at `peak`.
      total_steps: the length of the run; the rate reaches 0 there.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int):
        self.peak, self.warmup_steps, self.total_steps = peak, warmup_steps, total_steps

    def __call__(self, step: Any) -> tf.Tensor:
        """The learning rate of `step` (float32 scalar); step 0 already moves a little."""
        step = tf.cast(step, tf.float32)
        warmup = (step + 1.0) / (self.warmup_steps + 1.0)
        progress = (step - self.warmup_steps) / max(1.0, float(self.total_steps - self.warmup_steps))
        cosine = 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
        return self.peak * tf.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self) -> dict[str, Any]:
        """Keras' description of the schedule."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps}
