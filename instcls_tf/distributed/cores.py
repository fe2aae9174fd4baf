"""The cores of this machine: how workers share them, and their caches. No TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

from instcls_tf.distributed.control_groups import GROUPS, PROC, of_process
from instcls_tf.distributed.job import LAUNCHER
from instcls_tf.errors import UserError

# Set by the launcher where machines differ, or by hand: how many threads each worker of a job computes with.
THREADS = "INSTCLS_THREADS"

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def threads_of_worker(workers: int) -> int:
    """How many threads each of the workers of this machine computes with.

    Raises:
      UserError: the environment asks for a number that is none.
    """
    given = os.environ.get(THREADS)
    if given is None:
        return own_share(workers)
    if not (given.isdecimal() and int(given) >= 1):
        raise UserError(f"{THREADS}={given!r} in the environment: wanted the number of threads per worker, 1 or more")
    return int(given)


def own_share(workers: int) -> int:
    """How many of this machine's cores each of its workers has, whatever other machines have."""
    if is_bound():  # to a share that is made already, unless it is that of several
        cores_here = os.cpu_count() or 1
        return min(affinity(), share(min(cores_here, quota() or cores_here), workers))
    return share(allowed(), workers)


def is_bound() -> bool:
    """Whether this process was bound to cores of its own, not to those that all workers of a job here may run on.

    `scripts.launch` and `horovodrun` bind nobody; `mpirun` by itself, `srun` and MPICH's launchers do.
    """
    if os.environ.get(LAUNCHER) or "HOROVOD_RANK" in os.environ:
        return False
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return "OMPI_MCA_orte_bound_at_launch" in os.environ
    if "SLURM_CPU_BIND_TYPE" in os.environ:
        return os.environ["SLURM_CPU_BIND_TYPE"] != "none"
    return "PMI_RANK" in os.environ  # they do not tell


def allowed() -> int:
    """The number of cores whose time this process may have, by its affinity and by quotas."""
    return min(affinity(), quota() or affinity())


def affinity() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Of how many cores the control groups grant the time, rounded up; all of a container share it.

    Args:
      proc: Linux' account of processes.
      groups: where the control groups are.

    Returns:
      None without a limit, as `docker run --cpus=4` and a Kubernetes `limits: cpu: 4` set one.
    """
    found = [_quota_of(*group) for group in of_process("cpu", proc, groups)]
    return min((count for count in found if count is not None), default=None)


def _quota_of(folder: Path, version: int) -> int | None:
    names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit, and -1 is none
        microseconds, period = map(int, " ".join((folder / name).read_text() for name in names).split())
        return -(-microseconds // period) if microseconds > 0 else None
    return None


def share(allowed: int, workers: int) -> int:
    """The share of each of a machine's workers of the cores on which all of them may run."""
    return max(1, allowed // workers)


@functools.cache
def cache_bytes(level: int) -> int | None:
    """The size of a cache of the first core, None where the system does not tell."""
    for entry in _CACHES.glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            if int((entry / "level").read_text()) == level and (entry / "type").read_text().strip() != "Instruction":
                return int((entry / "size").read_text().strip().removesuffix("K")) * 1024  # "32768K"
    return None
