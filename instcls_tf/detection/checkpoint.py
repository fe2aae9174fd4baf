"""The state of a detector's fine-tune, in `WORKDIR/detector/`: the same command again goes on from there."""

from __future__ import annotations

import dataclasses
import glob
import json
import os

import tensorflow as tf

from instcls_tf import files
from instcls_tf.detection.config import DetectConfig
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError, reason_of, shown
from instcls_tf.run import checkpoint

# What does not change the result.
_NOT_RECIPE = ("workdir", "data_dir")


def save(config: DetectConfig, origin: str, state: tf.train.Checkpoint, step: int) -> None:
    """Writes the state of a fine-tune, in place of the one before; rank 0 does.

    Args:
      config: the settings.
      origin: as in `restore`.
      state: what is written.
      step: completed steps.

    Raises:
      UserError: it cannot be written; the one before stays.
    """
    if collectives.rank() > 0:
        return
    folder = _folder(config)
    try:
        os.makedirs(folder, exist_ok=True)
        state.write(_prefix(config, step))
    except (OSError, tf.errors.OpError) as error:
        reason = error.strerror if isinstance(error, OSError) else reason_of(error)
        raise UserError(f"{shown(folder)}: cannot write the state of step {step} there ({shown(reason)})") from error
    record = {"step": step, "settings": _recipe(config), "origin": origin}
    files.write(_record(config), json.dumps(record).encode())
    for path in glob.glob(os.path.join(glob.escape(folder), "step-*")):
        if not path.startswith(_prefix(config, step)):
            os.remove(path)


def restore(config: DetectConfig, origin: str, state: tf.train.Checkpoint) -> int:
    """Reads the state that a fine-tune with the same settings left, the one that rank 0 sees; all workers together.

    Args:
      config: the settings.
      origin: a hash of the weights and the annotations that the fine-tune starts from: a run that went on, or another
        data set at the same place, is another fine-tune.
      state: receives it.

    Returns:
      Its completed steps; 0 if there is none, or one with other settings, which the next `save` replaces.

    Raises:
      UserError: the state is damaged; on all workers alike.
      MachineError: the file system fails; likewise.
    """
    step = workers.of_rank_0(lambda: _kept_step(config, origin))
    if step:
        workers.all_or_none(lambda: checkpoint.restore(_prefix(config, step), state, {}))
    return step


def _kept_step(config: DetectConfig, origin: str) -> int:
    if not files.is_there(_record(config)):
        return 0
    step, settings, began = _read_record(config)
    return step if settings == _recipe(config) and began == origin else 0


def _read_record(config: DetectConfig) -> tuple[int, dict, str | None]:
    """Completed steps, settings and origin of the state that is there."""
    text = files.read_text(_record(config))
    try:
        record = json.loads(text)
        return int(record["step"]), dict(record["settings"]), record.get("origin")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        found = "damaged" if text else "empty"
        raise UserError(
            f"{_record(config)}: {found}, wanted the state of a fine-tune: bring it back from a copy, or take"
            f" {_folder(config)} away to begin anew"
        ) from error


def _recipe(config: DetectConfig) -> dict:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_RECIPE}


def _folder(config: DetectConfig) -> str:
    return os.path.join(config.workdir, "detector")


def _record(config: DetectConfig) -> str:
    return os.path.join(_folder(config), "state.json")


def _prefix(config: DetectConfig, step: int) -> str:
    return os.path.join(_folder(config), f"step-{step:08d}")
