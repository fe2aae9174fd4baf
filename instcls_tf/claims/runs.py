"""The runs that a claim takes, what tells one from another, and their commands. No TensorFlow.

A run is known by its scale, its recipe, its length and its seed, not by the claim that asks for it: claims share runs.
The recipe is what the flags come to, so that a changed preset makes other runs.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

from instcls_tf.claims.ledger import Arm, Claim, Scale
from instcls_tf.config import INSTANCE, MOCO_V2, RANDOM, RAW_RUNNING_BN, PretrainConfig
from instcls_tf.sweep.trials import NO_PART, digest, identity

# What takes time and changes nothing.
_WITHOUT = {"gauge_every": 0, "report": False}
# Forward passes that a backward pass costs.
_BACKWARD = 2


class Run(NamedTuple):
    """One run. `key` identifies it in the results."""

    scale: str
    flags: dict[str, Any]
    epochs: int
    seed: int

    @property
    def config(self) -> PretrainConfig:
        """Its recipe, but for dataset and workdir."""
        flags = dict(self.flags)
        preset = flags.pop("flagfile", None)
        settings = {**flags, "epochs": self.epochs, "seed": self.seed}
        return PretrainConfig(**settings) if preset is None else PretrainConfig.from_flagfile(preset, **settings)

    @property
    def recipe(self) -> dict[str, Any]:
        """What of it differs from the defaults; neither length nor seed, nor what changes no result."""
        return identity(self.config, {*NO_PART, "dataset", *_WITHOUT})

    @property
    def key(self) -> str:
        """Eight hexadecimal digits."""
        about = {"scale": self.scale, "recipe": self.recipe, "epochs": self.epochs, "seed": self.seed}
        return digest(about)

    def folder(self, workdir: str) -> str:
        """Where it is made."""
        return os.path.join(workdir, self.scale, f"{self.key}-{self.epochs}epochs-seed{self.seed}")

    def words(self, dataset: str | None, folder: str) -> list[str]:
        """The flags of `pretrain`.

        Args:
          dataset: `--dataset`, for scales whose preset has none.
          folder: the run's.
        """
        flags = {**self.flags, "epochs": self.epochs, "seed": self.seed, "workdir": folder, **_WITHOUT}
        if dataset is not None:
            flags["dataset"] = dataset
        return [f"--{name}={_text(value)}" for name, value in flags.items()]

    def commands(self, dataset: str | None, workdir: str) -> tuple[tuple[str, ...], ...]:
        """What makes the run and judges it, one after the other."""
        folder = self.folder(workdir)
        python = (sys.executable, "-m")
        return (
            (*python, "scripts.pretrain", *self.words(dataset, folder)),
            (*python, "scripts.knn_eval", f"--workdir={folder}", "--features=backbone"),
            (*python, "scripts.linear_eval", f"--workdir={folder}", "--cached"),
        )


def runs_of(claim: Claim, scale: Scale) -> list[Run]:
    """All runs of a claim at a scale, the shortest first and all arms of a seed together: pairs are complete soon."""
    lengths, seeds = claim.epochs.get(scale.name, ()), range(claim.seeds.get(scale.name, 0))
    return [run_of(arm, scale, length, seed) for length in lengths for seed in seeds for arm in claim.arms.values()]


def run_of(arm: Arm, scale: Scale, epochs: int, seed: int) -> Run:
    """The run of an arm, where the claim says so many epochs."""
    return Run(scale.name, {**scale.flags, **arm.flags[scale.name]}, arm.epochs(scale.name, epochs), seed)


def passes_per_image(config: PretrainConfig) -> float:
    """What one visit of an image costs, in forward passes of the encoder; a backward pass counts as two.

    The prior's passes, of the whole run, are spread over its epochs.
    """
    if config.method == MOCO_V2:
        return 2 + _BACKWARD
    prior = 0.0
    if config.method == INSTANCE and config.classifier_init != RANDOM:
        burn_in = config.bn_burn_in if config.classifier_init == RAW_RUNNING_BN else 0
        prior = (1 + burn_in) / config.epochs
    return config.views * (1 + _BACKWARD) + prior


def hours_of(run: Run, scale: Scale, seconds_per_pass: float | None) -> float | None:
    """About how long it takes; None where nobody has measured a run of that scale.

    Args:
      run: the run.
      scale: its scale.
      seconds_per_pass: of all images through the encoder once (`passes_per_image`), as runs of this scale have taken.
    """
    measured = None if seconds_per_pass is None else seconds_per_pass * passes_per_image(run.config)
    of_epoch = scale.seconds_per_epoch if measured is None else measured
    return None if of_epoch is None else run.epochs * of_epoch / 3600


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
