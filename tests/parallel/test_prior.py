"""The classifier's initial rows do not depend on the number of workers."""

from __future__ import annotations

import numpy as np

from tests.parallel.launch import launch
from tests.reference import relative_error


def test_rows_are_the_same_for_any_number_of_workers(tmp_path):
    rows = {}
    for num_workers in (1, 2, 3):
        folder = tmp_path / str(num_workers)
        folder.mkdir()
        launch(num_workers, "prior", folder)
        rows[num_workers] = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    for init, expected in rows[1].items():
        assert np.isfinite(expected).all() and np.linalg.norm(expected, axis=1).min() > 0.1
        for num_workers in (2, 3):
            assert relative_error(rows[num_workers][init], expected) < 1e-4, init
    assert relative_error(rows[1]["raw_running_bn"], rows[1]["raw_fixed_bn"]) > 0.1
