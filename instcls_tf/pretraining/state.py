"""Everything that changes during a run: encoder, method and optimiser, and their checkpoint."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import tensorflow as tf

from instcls_tf import stamps
from instcls_tf.classifier.hard_negatives import HardNegatives
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import MIXED_FLOAT16, PretrainConfig
from instcls_tf.distributed import collectives
from instcls_tf.encoder import networks
from instcls_tf.methods.instance import HARD_NEGATIVES_KEY
from instcls_tf.methods.method import Method
from instcls_tf.optimizer import Extended, MomentumSGD, WarmupCosine
from instcls_tf.pretraining import agreement
from instcls_tf.pretraining.activations import groups_of
from instcls_tf.pretraining.make_method import make_method
from instcls_tf.pretraining.steps import Steps
from instcls_tf.pretraining.train_step import TrainStep, make_train_step
from instcls_tf.run import checkpoint
from instcls_tf.run.checkpoint_manifest import Origin
from instcls_tf.run.log import RunClock
from instcls_tf.run.parts import Slices, replicated_variables

# Of steps that are only timed: so small that the weights of all of them stay sound.
TRIAL_LEARNING_RATE = 1e-4


class Run(NamedTuple):
    """Everything that changes during a run."""

    encoder: tf.keras.Model
    method: Method
    optimizer: MomentumSGD
    kept: set[int]  # the steps that this process has saved, and the one that it has restored
    origin: Origin = Origin()
    keep_checkpoints: int = PretrainConfig.keep_checkpoints
    clock: RunClock | None = None  # of which checkpoints keep the time

    @property
    def network(self) -> tf.keras.Model:
        """What is trained."""
        return self.method.network(self.encoder)

    @property
    def classifier(self) -> ShardedClassifier | None:
        """Of the instance classification."""
        return self.method.classifier

    @property
    def hard_negatives(self) -> HardNegatives | None:
        """Of the instance classification with smoothing."""
        return self.method.hard_negatives

    def replicated(self) -> tf.train.Checkpoint:
        """What all workers hold alike; `optimizer.iterations` is the number of completed steps."""
        return tf.train.Checkpoint(encoder=self.encoder, optimizer=self.optimizer, **self.method.replicated())

    def sliced(self, with_lists: bool) -> dict[str, Slices]:
        """What is split over the workers. Lists, if any, matter in mid-epoch only: an epoch starts with new ones."""
        parts = self.method.sliced()
        if with_lists and self.hard_negatives is not None:
            owner = self.hard_negatives.classifier
            parts[HARD_NEGATIVES_KEY] = Slices(self.hard_negatives.lists, owner.begin, owner.num_instances)
        return parts

    @property
    def step(self) -> int:
        """Completed steps, and so the number of the next one."""
        return int(self.optimizer.iterations)

    def save(self, workdir: str, with_lists: bool) -> None:
        """Writes a checkpoint; all workers together.

        Args:
          workdir: the run's folder.
          with_lists: in mid-epoch, where there are lists of hard negatives.

        Raises:
          MachineError: the workers hold different weights; on all workers alike.
          UserError: see `checkpoint.save`.
        """
        stamps.stamp(f"saving step {self.step}")
        replicated = self.replicated()
        agreement.refuse_different_weights(replicated_variables(replicated), self.step)
        sliced = self.sliced(with_lists)
        seconds = self.clock.seconds() if self.clock else 0.0
        checkpoint.save(workdir, self.step, replicated, sliced, self.origin, self.keep_checkpoints, seconds)
        self.kept.add(self.step)

    def restore(self, prefix: str) -> bool:
        """Reads a checkpoint; returns whether it holds the lists of an epoch that was cut in two.

        Raises:
          UserError: see `checkpoint.restore`.
        """
        stamps.stamp("restoring")
        has_lists = checkpoint.holds(prefix, HARD_NEGATIVES_KEY)
        checkpoint.restore(prefix, self.replicated(), self.sliced(has_lists), self.origin)
        self.kept.add(self.step)
        return has_lists


def make_schedule(steps: Steps) -> WarmupCosine | Extended:
    """The learning rates of a run."""
    config = steps.config
    peak, regular = config.peak_learning_rate, steps.total - steps.extension
    first = WarmupCosine(peak, steps.warmup, regular)
    if not steps.extension:
        return first
    warmup = round(min(config.warmup_epochs, config.extend_epochs / 10) * steps.per_epoch)
    return Extended(first, regular, WarmupCosine(peak, warmup, steps.extension))


def make_run(
    config: PretrainConfig,
    num_instances: int,
    schedule: WarmupCosine | Extended,
    initialize: Callable[[tf.keras.Model], None] = lambda encoder: None,
) -> Run:
    """A run before its first step; class weights of the instance classification are 0 until something fills them.

    Args:
      config: the recipe.
      num_instances: N.
      schedule: the learning rates.
      initialize: gives the encoder other weights than random ones, before the method takes copies of it.
    """
    encoder = networks.make_encoder(config, config.precision)
    initialize(encoder)
    # All workers drew the same weights from the same seed; this makes it certain.
    collectives.broadcast_variables(encoder.variables)
    optimizer = MomentumSGD(schedule, config.momentum, config.weight_decay)
    if config.precision == MIXED_FLOAT16:
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    method = make_method(config, num_instances, encoder)
    run = Run(encoder, method, optimizer, set(), keep_checkpoints=config.keep_checkpoints)
    optimizer.build(run.network.trainable_variables)
    return run


def make_trial_run(config: PretrainConfig, num_instances: int) -> Run:
    """A run whose steps are only timed, at `TRIAL_LEARNING_RATE`.

    Class weights and hard negatives are random: which they are says nothing about the time of a step, and a search
    takes long for many classes.

    Args:
      config: the recipe.
      num_instances: N.
    """
    run = make_run(config, num_instances, WarmupCosine(TRIAL_LEARNING_RATE, 0, 1_000_000))
    if run.classifier is not None:
        run.classifier.initialize_gaussian()
    if run.hard_negatives is not None:
        lists = run.hard_negatives.lists
        lists.assign(tf.random.uniform(lists.shape, 0, num_instances, tf.int32))
    return run


def make_step_of_run(
    run: Run, config: PretrainConfig, num_instances: int, method: Method | None = None, **ways: Any
) -> TrainStep:
    """The training step of a run, for the batches of its recipe.

    Args:
      run: what is trained.
      config: its recipe.
      num_instances: N.
      method: another than the run's.
      **ways: `sum_gradients` and `is_checked` of `make_train_step`.
    """
    views_spec = tf.TensorSpec([None, config.views, config.image_size, config.image_size, 3], tf.uint8)
    groups = groups_of(config, num_instances)
    method = run.method if method is None else method
    return make_train_step(run.network, method, run.optimizer, views_spec, config.micro_batch, groups, **ways)
