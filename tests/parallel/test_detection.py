"""A step of the detector's fine-tune on T workers, whose shares are uneven, is the step of one worker."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.commands import run_command, under_launcher


def steps_on(workers: int, folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.parallel.detection_task", str(folder)]
    finished = run_command(under_launcher(workers, command), timeout=200)
    assert finished.status == 0, finished.output[-8000:]
    return dict(np.load(folder / "detection.npz"))


def test_two_workers_make_the_steps_of_one(tmp_path):
    alone, together = (steps_on(workers, tmp_path / str(workers)) for workers in (1, 2))
    assert together.keys() == alone.keys() and len(alone) > 60
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert len(set(alone["losses"])) == len(alone["losses"])
