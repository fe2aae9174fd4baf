"""The classifier's initial weights do not depend on the number of workers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.reference import relative_error


def test_class_weights_are_the_same_for_any_number_of_workers(job):
    weights = {}
    for num_workers in (1, 2, 3):
        weights[num_workers] = {path.stem: np.load(path) for path in (job(num_workers) / "prior").glob("*.npy")}
    for init, expected in weights[1].items():
        assert np.isfinite(expected).all() and np.linalg.norm(expected, axis=1).min() > 0.1
        for num_workers in (2, 3):
            assert relative_error(weights[num_workers][init], expected) < 1e-4, init
    assert relative_error(weights[1]["raw_running_bn"], weights[1]["raw_fixed_bn"]) > 0.1


def test_its_gap_is_the_same_for_any_number_of_workers(job):
    gaps = [json.loads((job(count) / "prior" / "raw_running_bn.json").read_text()) for count in (1, 2, 3)]
    assert gaps[0]["gap"] > 0.02
    for gap in gaps[1:]:
        assert gap == pytest.approx(gaps[0], rel=1e-3)
