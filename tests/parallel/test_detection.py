"""A step of the detector's fine-tune on T workers, whose shares are uneven, is the step of one worker."""

from __future__ import annotations

import numpy as np


def test_two_workers_make_the_steps_of_one(job):
    alone, together = (dict(np.load(job(workers) / "detection" / "detection.npz")) for workers in (1, 2))
    assert together.keys() == alone.keys() and len(alone) > 60
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert len(set(alone["losses"])) == len(alone["losses"])
