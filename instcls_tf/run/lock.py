"""A workdir belongs to one run at a time: a lock that dies with the process that holds it. No TensorFlow.

The lock is the operating system's, on the open file `WORKDIR/lock`; what is written in it only tells who the owner is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from typing import IO

from instcls_tf import files, stamps
from instcls_tf.distributed import job
from instcls_tf.errors import MachineError, UserError, one_line, shown

_NAME = "lock"
# For how long a job under the launcher waits for another machine's lock: a server of NFS holds that of a machine that
# is gone until its lease ends, after 90 s, and the restart comes sooner.
_PATIENCE, _LOOK_SECONDS = 120.0, 1.0
# What a process holds already: it may take it again, as a notebook does in which a run has failed.
_held: dict[str, IO[str]] = {}


class WorkdirLock:
    """Holds a workdir until `release`, or until the process ends in whatever way.

    Args:
      workdir: the folder, which exists.

    Raises:
      UserError: another process holds it; names host, process and its start.
      MachineError: under the launcher, a process of another machine has held it for two minutes more.
    """

    def __init__(self, workdir: str):
        self._path = os.path.join(os.path.realpath(workdir), _NAME)
        if self._path in _held:
            return
        file = _locked(self._path, workdir)
        if file is None:
            return
        file.seek(0)
        file.truncate()
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its owner's name
            json.dump(owner, file)
            file.flush()
        _held[self._path] = file

    def release(self) -> None:
        """Gives the workdir free."""
        file = _held.pop(self._path, None)
        if file is not None:
            with contextlib.suppress(OSError):
                os.remove(self._path)
            file.close()


def _locked(path: str, workdir: str) -> IO[str] | None:
    """The file, open and locked; None where the file system has no locks."""
    since = None
    while True:
        try:
            file = open(path, "a+")  # noqa: SIM115 # held beyond this function
        except OSError as error:
            raise files.error_of(error, f"--workdir={shown(workdir)}: cannot write there ({error.strerror})") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                since = _refuse_or_wait(file, workdir, since)
                continue
            sys.stderr.write(f"warning: {shown(path)}: this file system has no locks ({error.strerror})\n")
            return None
        # The owner may have removed it between the two calls: then this lock is on a file that nobody sees.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def _refuse_or_wait(file: IO[str], workdir: str, since: float | None) -> float:
    """Waits a moment for a lock that may be left of a machine that is gone.

    Args:
      file: which another process has locked; it is closed.
      workdir: the folder.
      since: when the waiting began, of `time.monotonic()`; None if it has not yet.

    Returns:
      When it began.

    Raises:
      UserError: the owner is of this machine, or not known, or no launcher of ours has started this process.
      MachineError: the waiting has been long.
    """
    with file:
        host, owner = _owner(file)
    sentence = f"--workdir={shown(workdir)}: is in use by {owner}"
    if not os.environ.get(job.FOLDER) or host in ("", socket.gethostname()):
        raise UserError(f"{sentence}: wait until that run is done, end it, or give another folder")
    if since is None:
        since = time.monotonic()
        line = f"{sentence}: waiting for up to {_PATIENCE:g} s, as a file server holds what a machine has left"
        with contextlib.suppress(OSError):
            sys.stderr.write(one_line(line) + "\n")
    elif time.monotonic() - since > _PATIENCE:
        raise MachineError(
            f"{sentence}, still after {_PATIENCE:g} s: wait until that run is done, end it, or give another folder"
        )
    stamps.go_on()
    time.sleep(_LOOK_SECONDS)
    return since


def _owner(file: IO[str]) -> tuple[str, str]:
    """The owner's host, empty if that is not known, and the owner in words."""
    file.seek(0)
    try:
        owner = json.load(file)
        return str(owner["host"]), f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "", "another process"
