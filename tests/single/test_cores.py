"""A worker's share of a machine's cores, and their caches."""

import os

import pytest

from instcls_tf.distributed import cores
from instcls_tf.distributed.cores import share
from instcls_tf.errors import UserError


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


def test_one_worker_has_all_cores_that_it_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5})
    assert cores.threads_of_worker(1) == cores.allowed() == 3
    assert cores.threads_of_worker(4) == 2


def test_a_number_of_threads_for_all_workers(monkeypatch):
    """What all machines are told stands before this one's share, but reading has its share all the same."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv(cores.THREADS, "3")
    assert (cores.threads_of_worker(1), cores.threads_of_worker(8), cores.own_share(1)) == (3, 3, 8)
    for wrong in ("0", "-1", "all", ""):
        monkeypatch.setenv(cores.THREADS, wrong)
        with pytest.raises(UserError, match=f"INSTCLS_THREADS='{wrong}' in the environment: wanted the number of"):
            cores.threads_of_worker(1)


def test_caches_as_the_system_describes_them(monkeypatch, tmp_path):
    caches = ("1", "Instruction", "32K"), ("1", "Data", "48K"), ("2", "Unified", "1024K"), ("3", "Unified", None)
    for index, (level, kind, size) in enumerate(caches):
        (tmp_path / f"index{index}").mkdir()
        for name, content in (("level", level), ("type", kind), ("size", size)):
            if content is not None:
                (tmp_path / f"index{index}" / name).write_text(content + "\n")
    monkeypatch.setattr(cores, "_CACHES", tmp_path)
    cache_bytes = cores.cache_bytes.__wrapped__
    assert [cache_bytes(level) for level in (1, 2, 3, 4)] == [48 * 1024, 2**20, None, None]
    monkeypatch.setattr(cores, "_CACHES", tmp_path / "missing")
    assert cache_bytes(2) is None
