"""A worker's share of a machine's cores."""

import pytest

from instcls_tf.cores import share


@pytest.mark.parametrize(
    ("cores", "allowed", "workers", "threads"),
    [
        (8, 8, 2, 4),
        (8, 8, 3, 2),
        (2, 2, 3, 1),  # more workers than cores
        (8, 2, 4, 2),  # bound by the launcher: the share is made already
        (8, 1, 2, 1),
    ],
)
def test_workers_share_the_cores(cores, allowed, workers, threads):
    assert share(cores, allowed, workers) == threads
