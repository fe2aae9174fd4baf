"""The steps of a run, the epochs they belong to, and what is due at them."""

from __future__ import annotations

import dataclasses

from instcls_tf.config import PretrainConfig
from instcls_tf.distributed.partition import steps_per_epoch


def note_of_length(config: PretrainConfig, num_instances: int, begins: bool) -> str | None:
    """What a user is told of a run that is longer than its `epochs`.

    Args:
      config: the recipe, with its `exposures`.
      num_instances: N.
      begins: whether it is the run's first start, at which it might be otherwise.
    """
    epochs = config.for_instances(num_instances).epochs
    if epochs == config.epochs:
        return None
    note = f"length: {epochs} epochs, by --exposures={config.exposures} instead of --epochs={config.epochs}"
    return f"{note}; --exposures=0 takes --epochs" if begins else f"{note}, as the run began"


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps are counted from 0 over all epochs; every epoch shows each of the N instances once.

    PIC's window shows some instances often and the others later: there an epoch is about N / W windows, which make as
    many visits in all.

    Args:
      config: the recipe.
      num_instances: N.
    """

    config: PretrainConfig
    num_instances: int

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(self.num_instances, self.config.batch_size, self.config.window(self.num_instances))

    @property
    def _listed(self) -> int:
        """Instances that are shown once before any comes again: all, or those in a window."""
        window = self.config.window(self.num_instances)
        return self.num_instances if window is None else window.size

    @property
    def _per_pass(self) -> int:
        return steps_per_epoch(self._listed, self.config.batch_size)

    @property
    def full_batch(self) -> int:
        """Instances of every batch but the last before some come again: no more than are shown until then."""
        return min(self.config.batch_size, self._listed)

    @property
    def longest_absence(self) -> int:
        """The most steps between two visits of an instance; a window goes on by no more than its own size."""
        window = self.config.window(self.num_instances)
        passes = 1 if window is None else -(-self.num_instances // window.stride)
        return (passes + 1) * self._per_pass

    @property
    def total(self) -> int:
        """Steps of the whole recipe, its extension included."""
        return self.config.all_epochs * self.per_epoch

    @property
    def extension(self) -> int:
        """Steps of `--extend_epochs`, the last ones."""
        return self.config.extend_epochs * self.per_epoch

    @property
    def warmup(self) -> int:
        """Steps of the linear warm-up."""
        return round(self.config.effective_warmup_epochs * self.per_epoch)

    @property
    def end(self) -> int:
        """One after the last step that `max_steps` allows."""
        return self.total if self.config.max_steps is None else min(self.total, self.config.max_steps)

    def epoch(self, step: int) -> int:
        """The epoch of a step, counted from 0."""
        return step // self.per_epoch

    def begins_epoch(self, step: int) -> bool:
        """Whether a step is the first of its epoch."""
        return step % self.per_epoch == 0

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of its epoch."""
        return (step + 1) % self.per_epoch == 0

    def contrasts(self, step: int) -> bool:
        """Whether a step is of the epochs before the instance classification, which train with NT-Xent alone."""
        return self.epoch(step) < self.config.contrast_epochs

    def ends_contrast(self, step: int) -> bool:
        """Whether a step is the last of those."""
        return self.contrasts(step) and not self.contrasts(step + 1)

    def takes_prior_again(self, step: int) -> bool:
        """Whether the class weights are taken from the network before a step, other than at the begin of the run."""
        epoch = self.epoch(step) - self.config.contrast_epochs
        if not self.begins_epoch(step) or epoch < 0 or step == 0:
            return False
        return epoch == 0 or (self.config.prior_every > 0 and epoch % self.config.prior_every == 0)

    def instances(self, step: int) -> int:
        """Instances in the global batch of a step."""
        return min(self.full_batch, self._listed - step % self._per_pass * self.config.batch_size)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows a step."""
        every = self.config.checkpoint_every
        due = every > 0 and self.ends_epoch(step) and (self.epoch(step) + 1) % every == 0
        return due or step + 1 == self.end
