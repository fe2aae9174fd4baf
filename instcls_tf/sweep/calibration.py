"""How long an epoch of a recipe takes, measured as its trials will run, and how many fit into the minutes."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from instcls_tf.classifier.shift import needs_shift
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.sweep.trials import NO_PART, Trial, digest, identity

# Three epochs, the first of which compiles graphs and fills caches; of long ones a few steps.
_EPOCHS, _MOST_STEPS = 3, 600
# What changes no time: a group of settings that differ in nothing else is measured once.
_NO_TIME = NO_PART - {"checkpoint_every"} | {
    "learning_rate",
    "scale_learning_rate",
    "classifier_learning_rate_factor",
    "warmup_epochs",
    "weight_decay",
    "class_weight_decay",
    "temperature",
    "batch_contrast_temperature",
    "moco_momentum",
    "diet_label_smoothing",
    "color_strength",
    "contrast_epochs",
    "prior_every",
}


class Pace(NamedTuple):
    """Wall time of a recipe on its cores.

    `seconds_before` is what comes before the first step and what the first steps take longer than others: the prior,
    graphs that are compiled.
    """

    seconds_before: float
    seconds_per_epoch: float
    images_per_second: float


def group_of(trial: Trial, cores: int, side_by_side: int) -> str:
    """What identifies the trials that share a calibration."""
    config = trial.setting.config
    what = {"recipe": identity(config, _NO_TIME), "dataset": trial.dataset, "cores": cores}
    # The one change of a temperature that takes time.
    has_shift = config.method == INSTANCE and needs_shift(config.temperature)
    shift = {"shift": True} if has_shift else {}
    return digest({**what, "side_by_side": side_by_side, **shift})


def calibration_config(trial: Trial, folder: str) -> PretrainConfig:
    """The recipe of a calibration: the trial's, short, without learning anything that could diverge."""
    return trial.config(_EPOCHS, 0).replace(
        workdir=os.path.join(folder, "run"),
        learning_rate=0.0,
        contrast_epochs=0,
        prior_every=0,
        online_knn_every=0,
        log_every=1,
        max_steps=_MOST_STEPS,
        seed=0,
    )


def pace_of(lines: list[dict[str, float]]) -> Pace:
    """The pace of a calibration.

    Args:
      lines: its `metrics.jsonl`, with a line for each step. Whole epochs after the first count where there are some, or
        as many steps as one has, so that the search for hard negatives and the checkpoint do once for each; of longer
        epochs, steps in the midst of one.
    """
    seconds = {round(line["step"]): line["seconds"] for line in lines}
    last = lines[-1]
    steps, per_epoch = round(last["step"]), round(last["step"] / last["epoch"])
    whole = steps // per_epoch
    if whole >= 2:
        begin, end = per_epoch, whole * per_epoch
    elif 2 * steps >= 3 * per_epoch:
        begin, end = steps - per_epoch, steps
    else:
        end = min(steps, per_epoch - 1)
        begin = end // 2
    per_step = (seconds[end] - seconds[begin]) / (end - begin)
    rates = [line["images_per_second"] for line in lines if begin < line["step"] <= end]
    before = max(0.0, seconds[begin] - begin * per_step)
    return Pace(before, per_step * per_epoch, float(np.median(rates)))


def mean_pace(paces: list[Pace]) -> Pace:
    """Of calibrations that ran side by side."""
    return Pace(*(float(np.mean(values)) for values in zip(*paces)))


def epochs_in(minutes: float, pace: Pace) -> int:
    """The number of epochs that comes closest to the minutes; 0 if none does."""
    return max(0, round((60 * minutes - pace.seconds_before) / pace.seconds_per_epoch))
