"""What `scripts.launch` and the workers that it starts leave for each other, in a folder of the job. No TensorFlow."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import time
from typing import NamedTuple

from instcls_tf import files
from instcls_tf.distributed.launcher import launched_rank_and_size, refuse_several
from instcls_tf.errors import UserError

# Set by the launcher: the job's folder; itself, as PID@MACHINE; a terminal for rank 0's progress bar, as PATH@MACHINE.
FOLDER, LAUNCHER, TERMINAL = "INSTCLS_JOB", "INSTCLS_LAUNCHER", "INSTCLS_TERMINAL"

# An empty file of the launcher's in the job's folder: a machine on which it is missing does not share that folder.
MARK = "launcher"

# What asks a job to stop, and how one ends that did so: EX_TEMPFAIL of sysexits.h, the same command goes on later.
HEEDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
STOPPED_STATUS = 75

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # found here: between fork and exec nothing is to be loaded


class WorkerError(NamedTuple):
    """Why a worker ended."""

    time: float  # seconds since the epoch: the earliest of the workers' is the cause of the others
    rank: int
    host: str
    sentence: str
    trace: str  # a traceback, if nobody has foreseen the error
    is_said: bool  # on standard error, by the worker itself
    is_mistake: bool  # for a person to mend: the same would come again


def folder() -> str | None:
    """The job's folder, if `scripts.launch` started this process and reads what is left there.

    Without a workdir that all machines share it lies on the launcher's machine, and is not to be made on others.
    """
    named = os.environ.get(FOLDER)
    return named if named and os.path.exists(os.path.join(named, MARK)) else None


def record_error(sentence: str, trace: str = "", is_said: bool = False, is_mistake: bool = False) -> bool:
    """Leaves this worker's error for the launcher; returns whether there is one that will find it.

    Each worker has a file of its own, and its first error stays.
    """
    rank, _ = launched_rank_and_size() or (0, 1)
    to = folder()
    if to is None:
        return False
    error = WorkerError(time.time(), rank, socket.gethostname(), sentence, trace, is_said, is_mistake)
    try:
        with open(os.path.join(to, f"rank{rank:05d}.error"), "x") as file:
            json.dump(error, file)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True


def read_errors(of: str) -> list[WorkerError]:
    """The workers' errors of a job's folder, the earliest first."""
    found = []
    for name in os.listdir(of):
        if name.endswith(".error"):
            with contextlib.suppress(OSError, ValueError, TypeError), open(os.path.join(of, name)) as file:
                found.append(WorkerError(*json.load(file)))
    return sorted(found)


def is_orphaned() -> bool:
    """Whether the launcher was on this machine, or in this container, and is gone."""
    pid, _, machine = os.environ.get(LAUNCHER, "").partition("@")
    return bool(pid) and machine == files.machine() and not os.path.exists(f"/proc/{pid}")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Has the system send this process a signal when the one that started it is gone, however that ended (Linux)."""
    if _prctl is not None:
        _prctl(_SET_PARENT_DEATH_SIGNAL, int(number), 0, 0, 0)


def refuse_launcher(command: str) -> None:
    """For what starts runs of its own: they would take themselves for the job's worker, and be killed with it.

    Args:
      command: as its user calls it.

    Raises:
      UserError: `scripts.launch` has started this process, or another launcher several.
    """
    refuse_several(command)
    if os.environ.get(FOLDER):
        raise UserError(
            f"{command}: starts runs of its own, which scripts.launch would kill: start it without a launcher"
        )


def join() -> None:
    """What a worker of `scripts.launch` does first: it ends with its launcher, and rank 0 takes the terminal."""
    if not os.environ.get(FOLDER):
        return
    die_with_parent()
    rank, _ = launched_rank_and_size() or (0, 1)
    name, _, machine = os.environ.get(TERMINAL, "").partition("@")
    if rank == 0 and name and machine == files.machine():
        with contextlib.suppress(OSError):
            os.dup2(os.open(name, os.O_WRONLY | os.O_NOCTTY), 2)
