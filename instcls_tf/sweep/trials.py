"""The trials of a sweep: which settings with which seeds, what identifies each, and which setting of an arm is best."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from instcls_tf.config import PretrainConfig
from instcls_tf.data.labelled import bank_split
from instcls_tf.run.workdir import NOT_RECIPE
from instcls_tf.sweep.held_out import held_out_folder
from instcls_tf.sweep.spec import Setting, Spec

SEARCH, FINAL = "search", "final"

# Of what a run may go on without, what is another trial: how fast it is, which decides how many epochs fit into the
# minutes, in the last digits what comes out, and how long it is.
_ANOTHER_TRIAL = {"recompute", "class_passes", "extend_epochs"}
# What tells no trial from another: where things lie, and what is written when. Length and seed are told beside it.
NO_PART = {*NOT_RECIPE, "epochs", "seed"} - _ANOTHER_TRIAL


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: a setting with a seed, in a stage. `key` identifies it in the results, whatever its number was."""

    setting: Setting
    seed: int
    stage: str
    dataset: str
    folder: str
    key: str

    def config(self, epochs: int, measurements: int) -> PretrainConfig:
        """Its recipe; it is judged by k-NN, not by gauges without labels nor against its start.

        What would be without effect in a run that begins so has its default: which part of a TFDS dataset is meant,
        where the images are a folder that was made of that part, and a prior that would be taken again after the end.

        Args:
          epochs: its length.
          measurements: how often k-NN is measured on the way at most; 0 leaves it to the setting.
        """
        config = self.setting.config
        shortest = epochs // (measurements + 1) + 1  # interval with no more than so many
        every = shortest if measurements else config.online_knn_every
        changes = {"workdir": self.folder, "dataset": self.dataset, "seed": self.seed, "epochs": epochs}
        idle = {"tfds_split"} if self.stage == SEARCH else set()
        if config.prior_every >= epochs - config.contrast_epochs:
            idle.add("prior_every")
        changes |= {field.name: field.default for field in dataclasses.fields(config) if field.name in idle}
        return config.replace(**changes, online_knn_every=every, gauge_every=0, report=False)


def search_trials(spec: Spec) -> list[Trial]:
    """All settings with the seeds of the search, judged on the validation slice; arms take turns.

    A sweep that is stopped early, or looked at on the way, has then tried as many settings of each arm.
    """
    most = max(map(len, spec.arms.values()))
    turns = [settings[place] for place in range(most) for settings in spec.arms.values() if place < len(settings)]
    return [_trial(spec, setting, seed, SEARCH) for setting in turns for seed in spec.search_seeds]


def final_trials(spec: Spec, results: list[dict]) -> list[Trial]:
    """The best setting of each arm with all seeds, judged on the test split; arms take turns.

    Arms are left out whose best setting is not known yet, or all of whose trials have failed.
    """
    best = [best_setting(spec, arm, results) for arm in spec.arms]
    return [_trial(spec, setting, seed, FINAL) for seed in spec.seeds for setting in best if setting is not None]


def trials_before_final(spec: Spec) -> list[Trial]:
    """Those of the search that choose among several settings."""
    return [trial for trial in search_trials(spec) if len(spec.arms[trial.setting.arm]) > 1]


def best_setting(spec: Spec, arm: str, results: list[dict]) -> Setting | None:
    """The setting of an arm with the highest mean accuracy on the validation slice over the seeds of the search.

    Args:
      spec: the specification.
      arm: its name.
      results: lines of the sweep; a trial that has failed has an accuracy of None, and rules its setting out.

    Returns:
      None while trials are missing, or if each setting has failed; the only setting of an arm at once.
    """
    if len(spec.arms[arm]) == 1:
        return spec.arms[arm][0]
    found = {result["key"]: result["accuracy"] for result in results}
    means: list[float] = []
    for setting in spec.arms[arm]:
        keys = [_trial(spec, setting, seed, SEARCH).key for seed in spec.search_seeds]
        if any(key not in found for key in keys):
            return None
        accuracies = [found[key] for key in keys]
        means.append(-1.0 if None in accuracies else float(np.mean(accuracies)))
    best = int(np.argmax(means))
    return spec.arms[arm][best] if means[best] >= 0 else None


def _trial(spec: Spec, setting: Setting, seed: int, stage: str) -> Trial:
    config, dataset = setting.config, setting.config.dataset
    about = {"stage": stage, "arm": setting.arm, "seed": seed, "recipe": identity(config, NO_PART)}
    about |= {"minutes": spec.minutes, "epochs": spec.epochs}
    if spec.minutes is not None:
        about |= {"cores": spec.cores, "side_by_side": spec.side_by_side}
    if stage == SEARCH:
        about |= {"validation": spec.validation, "slice": spec.seed}
        dataset = "folder:" + held_out_folder(spec.workdir, config, spec.validation, spec.seed)
    elif (bank := bank_split(config)) != "train":
        about["bank"] = bank  # lines without it were judged by all of train
    key = digest(about)
    folder = os.path.join(spec.workdir, stage, f"{setting.arm}-{key}-seed{seed}")
    return Trial(setting, seed, stage, dataset, folder, key)


def identity(config: PretrainConfig, without: set[str]) -> dict[str, Any]:
    """What of a recipe differs from the defaults: flags that come later change no older recipe."""
    fields = (field for field in dataclasses.fields(config) if field.name not in without)
    values = {field.name: (getattr(config, field.name), field.default) for field in fields}
    return {name: value for name, (value, default) in values.items() if value != default}


def digest(about: dict[str, Any]) -> str:
    """Eight hexadecimal digits that tell one thing from another."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
