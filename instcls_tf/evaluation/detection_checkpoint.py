"""The state of a detector's fine-tune, in `WORKDIR/detector/`: the same command again goes on from there."""

from __future__ import annotations

import dataclasses
import glob
import json
import os

import tensorflow as tf

from instcls_tf import checkpoint, collectives
from instcls_tf.evaluation.detection_config import DetectConfig

# What does not change the result.
_NOT_RECIPE = ("workdir", "data_dir")


def save(config: DetectConfig, origin: str, state: tf.train.Checkpoint, step: int) -> None:
    """Writes `state` after `step` steps, in place of the one before; rank 0 does. `origin` as in `restore`."""
    if collectives.rank() > 0:
        return
    folder = _folder(config)
    os.makedirs(folder, exist_ok=True)
    state.write(_prefix(config, step))
    with open(_record(config) + ".new", "w") as file:
        json.dump({"step": step, "settings": _recipe(config), "origin": origin}, file)
    os.replace(_record(config) + ".new", _record(config))
    for path in glob.glob(os.path.join(glob.escape(folder), "step-*")):
        if not path.startswith(_prefix(config, step)):
            os.remove(path)


def restore(config: DetectConfig, origin: str, state: tf.train.Checkpoint) -> int:
    """Reads the state that a fine-tune with the same settings left.

    Args:
      config: the settings.
      origin: a hash of the weights and the annotations that the fine-tune starts from: a run that went on, or another
        data set at the same place, is another fine-tune.
      state: receives it.

    Returns:
      Its completed steps; 0 if there is none, or one with other settings, which the next `save` replaces.

    Raises:
      UserError: the state is damaged.
    """
    if not os.path.exists(_record(config)):
        return 0
    with open(_record(config)) as file:
        record = json.load(file)
    if record["settings"] != _recipe(config) or record.get("origin") != origin:
        return 0
    checkpoint.restore(_prefix(config, record["step"]), state, {})
    return record["step"]


def _recipe(config: DetectConfig) -> dict:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_RECIPE}


def _folder(config: DetectConfig) -> str:
    return os.path.join(config.workdir, "detector")


def _record(config: DetectConfig) -> str:
    return os.path.join(_folder(config), "state.json")


def _prefix(config: DetectConfig, step: int) -> str:
    return os.path.join(_folder(config), f"step-{step:08d}")
