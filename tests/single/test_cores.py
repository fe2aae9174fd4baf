"""A worker's share of a machine's cores, and their caches."""

import os
import subprocess
import sys

import pytest

from instcls_tf.distributed import cores, hosts
from instcls_tf.distributed.cores import quota
from instcls_tf.errors import UserError
from tests.commands import ROOT


@pytest.fixture(autouse=True)
def no_quota(monkeypatch):
    """Whatever the tests themselves are run in."""
    monkeypatch.setattr(cores, "quota", lambda: None)


@pytest.mark.parametrize(
    ("count", "allowed", "workers", "is_bound", "threads"),
    [
        (8, 8, 2, False, 4),
        (8, 8, 3, False, 2),
        (2, 2, 3, False, 1),  # more workers than cores
        (8, 2, 4, True, 2),  # bound by the launcher: the share is made already
        (8, 1, 2, True, 1),
        (8, 8, 2, True, 4),  # bound to all of them
        (64, 8, 8, False, 1),  # 8 cores of a job of Slurm, or of a container
        (64, 4, 2, False, 2),
        (64, 4, 8, False, 1),
    ],
)
def test_workers_share_the_cores(monkeypatch, count, allowed, workers, is_bound, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed)))
    monkeypatch.setattr(cores, "is_bound", lambda: is_bound)
    assert cores.own_share(workers) == threads


@pytest.mark.parametrize(
    ("environment", "is_bound"),
    [
        ({}, False),
        ({"SLURM_CPU_BIND_TYPE": "mask_cpu:"}, True),
        ({"SLURM_CPU_BIND_TYPE": "none"}, False),
        ({"SLURM_CPU_BIND_TYPE": "mask_cpu:", cores.LAUNCHER: "1@a"}, False),
        ({"SLURM_CPU_BIND_TYPE": "mask_cpu:", "OMPI_COMM_WORLD_SIZE": "2"}, False),
        ({"SLURM_CPU_BIND_TYPE": "mask_cpu:", "HOROVOD_RANK": "0"}, False),
        ({"PMI_RANK": "0"}, True),
    ],
)
def test_who_is_bound(monkeypatch, environment, is_bound):
    of_open_mpi = ("OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_bound_at_launch")
    for name in (cores.LAUNCHER, *of_open_mpi, "SLURM_CPU_BIND_TYPE", "HOROVOD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cores.is_bound() == is_bound


@pytest.mark.parametrize("binding", ["none", "core"])
def test_open_mpi_says_whether_it_has_bound(binding):
    code = "from instcls_tf.distributed import cores; print(cores.is_bound())"
    mpirun = os.path.join(os.path.dirname(sys.executable), "mpirun")
    words = [mpirun, "--allow-run-as-root", "-np", "1", "-bind-to", binding, sys.executable, "-c", code]
    told = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    assert told.stdout.strip() == str(binding == "core")


LIMITS = {
    2: ("0::/pods/one", "", lambda granted, period: {"cpu.max": f"{granted or 'max'} {period}"}),
    1: ("4:cpu,cpuacct:/pods/one", "cpu", lambda granted, period: {
        "cpu.cfs_quota_us": f"{granted or -1}", "cpu.cfs_period_us": f"{period}"
    }),
}  # fmt: skip


@pytest.mark.parametrize("version", LIMITS)
@pytest.mark.parametrize("place", ["", "pods", "pods/one"])
def test_quotas_of_control_groups(tmp_path, version, place):
    """The lowest of the own group and of all that it is in, as containers may see their own as the root."""
    line, root, files = LIMITS[version]
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(f"3:cpuset:/pods\n{line}\n")
    assert quota(tmp_path, tmp_path) is None
    for where, granted, period, found in (
        (place, 0, 100000, None),
        (place, 400000, 100000, 4),
        (place, 250000, 100000, 3),
        (place, 5000, 10000, 1),
        ("pods/one", 900000, 100000, 1 if place != "pods/one" else 9),
    ):
        folder = tmp_path / root / where
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files(granted, period).items():
            (folder / name).write_text(content + "\n")
        assert quota(tmp_path, tmp_path) == found


@pytest.mark.parametrize(
    ("granted", "workers", "is_bound", "threads"),
    [(4, 1, False, 4), (4, 2, False, 2), (4, 8, False, 1), (99, 2, False, 32), (4, 2, True, 2), (99, 2, True, 32)],
)
def test_workers_share_a_quota(monkeypatch, granted, workers, is_bound, threads):
    """`docker run --cpus=4` on 64 cores: the affinity is of all of them."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(cores, "is_bound", lambda: is_bound)
    monkeypatch.setattr(cores, "quota", lambda: granted)
    assert (cores.own_share(workers), cores.allowed()) == (threads, min(granted, 64))


def test_other_hosts_tell_their_quota(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(cores, "quota", lambda: 4)
    monkeypatch.setattr(sys, "path", sys.path[:])
    exec(hosts._COUNT, {})
    assert capsys.readouterr().out == "4\n"
    words = [sys.executable, "-c", hosts._COUNT]  # in a shell of ssh, at home
    told = subprocess.run(words, check=True, capture_output=True, text=True, cwd="/")
    assert 1 <= int(told.stdout) <= (os.cpu_count() or 1)


def test_one_worker_has_all_cores_that_it_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5})
    assert cores.threads_of_worker(1) == cores.allowed() == 3
    assert cores.threads_of_worker(2) == cores.threads_of_worker(4) == 1


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
