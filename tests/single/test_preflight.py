"""What is refused before anything is touched, beyond what the recipe itself can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.pretraining import preflight
from instcls_tf.run.workdir import begin_run


def config_of(workdir, **changes) -> PretrainConfig:
    settings = {"dataset": "digits", "batch_size": 64, "micro_batch": 32, **changes}
    return PretrainConfig(workdir=str(workdir), **settings)


def begin_and_save(config: PretrainConfig) -> PretrainConfig:
    """A run with what every checkpoint has."""
    begin_run(config)
    (folder := Path(config.workdir) / "checkpoints").mkdir()
    (folder / "ckpt-00000004.index").touch()
    return config


def refusal_of(config: PretrainConfig) -> str:
    with pytest.raises(UserError) as refusal:
        preflight.open_training_data(config)
    return str(refusal.value)


def test_a_run_goes_on_with_as_many_workers_as_it_has_groups(tmp_path, monkeypatch):
    """Not told to take another --micro_batch, which is the run's."""
    config = begin_and_save(config_of(tmp_path))
    for workers in (1, 2):
        monkeypatch.setattr(preflight, "launched_rank_and_size", lambda workers=workers: (0, workers))
        preflight.open_training_data(config)
    monkeypatch.setattr(preflight, "launched_rank_and_size", lambda: (0, 4))
    assert refusal_of(config) == (
        f"--workdir={tmp_path}: its run has 2 BN group(s) in a batch (--micro_batch=32 of --batch_size=64), one at"
        f" least for each worker: wanted at most 2 workers, not 4, to continue it"
    )
    new = "--micro_batch=32: must be at most 21, for each of the 4 workers to have a BN group of --batch_size=64, or at"
    assert refusal_of(config_of(tmp_path / "new")) == f"{new} most 2 workers"
