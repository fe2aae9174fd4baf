"""Ends a job that stands still, and says which worker is where. No TensorFlow.

A collective waits for ever for a worker that is stuck or stopped, and neither Horovod nor MPI ends that. So a thread of
each worker publishes its last stamp in a small file every second. A worker that waits for another is no mistake: rank 0
may evaluate for long. But when no worker has moved for too long, one of them is stuck; and a worker whose thread is
silent is stopped, or gone. Rank 0 looks at all workers, the others whether rank 0 is silent. The launcher, if there is
one, looks as well: at a job whose workers are all stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import NamedTuple

from instcls_tf import stamps
from instcls_tf.config import STALL_TIMEOUT
from instcls_tf.distributed import job
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.errors import some_of

# In the workdir, for runs whose launcher has no folder of its own.
FOLDER_NAME = ".workers"
STALLED_STATUS = 70  # EX_SOFTWARE of sysexits.h
_TICK_SECONDS = 1.0
# Others than rank 0 speak later: one sentence is enough, and mpirun takes a second or two to end the others.
_LATER_SECONDS = 3.0
# How long a run has to save and stop when its launcher is gone.
_ORPHAN_SECONDS = 60.0
_SHOWN_WORKERS = 8
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Status(NamedTuple):
    """What a worker publishes of itself."""

    rank: int
    pid: int
    host: str
    ticks: int  # of its thread: a process that is stopped has no more of them
    stamps: int  # of its work
    phase: str
    where: str  # in the code, if the work has not moved since the tick before
    is_waiting: bool  # inside of TensorFlow: for another worker, or it computes
    limit: float  # seconds that the work may stand still; 0 for as long as it likes
    silence: float  # seconds that the process may; 0 for as long as it likes


class Standstill(NamedTuple):
    """How long a worker has shown no life, by the watch of who looks."""

    silent: float  # seconds without a tick
    stuck: float  # seconds without a stamp


class Watch:
    """Follows what workers publish. Only time during which the watch itself ran counts: it may be stopped, too.

    Args:
      ranks: of the workers that are followed.
      judges_work: whether these are all, so that nothing moves if none of them does.
    """

    def __init__(self, ranks: Iterable[int], judges_work: bool = True) -> None:
        self._ranks, self._judges_work = tuple(ranks), judges_work
        self._seen: dict[int, tuple[Status, Standstill]] = {}
        self._looked: float | None = None

    def look(self, folder: str, now: float | None = None) -> None:
        """Reads the newest statuses; to be called every tick. A worker without one, for whatever reason, is not judged.

        Args:
          folder: in which the workers publish.
          now: seconds on a clock that only goes forward; by default the system's.
        """
        now = time.monotonic() if now is None else now
        passed = 0.0 if self._looked is None else min(now - self._looked, 2 * _TICK_SECONDS)
        self._looked = now
        for status in read(folder, self._ranks):
            before, still = self._seen.get(status.rank, (status, Standstill(0.0, 0.0)))
            silent = still.silent + passed if (before.pid, before.ticks) == (status.pid, status.ticks) else 0.0
            stuck = still.stuck + passed if (before.pid, before.stamps) == (status.pid, status.stamps) else 0.0
            self._seen[status.rank] = status, Standstill(silent, stuck)

    def sentence(self, later: float = 0.0) -> str | None:
        """Who is where, if a worker has stood still longer than its limit and `later` seconds; None otherwise."""
        seen = self._seen.values()
        silent = [(still.silent, status.silence) for status, still in seen if status.silence]
        over = [(seconds, limit) for seconds, limit in silent if seconds > limit + later]
        limit = max((status.limit for status, _ in seen), default=0.0)
        stuck = min((still.stuck for _, still in seen), default=0.0)
        if self._judges_work and limit and stuck > limit + later:
            over.append((stuck, limit))
        if not over:
            return None
        longest, limit = max(over)
        order = sorted(self._seen.values(), key=lambda seen: (*_blame(*seen), seen[0].rank))
        missing = [f"worker {rank} has never given a sign of life" for rank in self._ranks if rank not in self._seen]
        told = some_of([*missing, *(_describe(*seen) for seen in order)], _SHOWN_WORKERS, "; ")
        may_compute = not missing and all(status.is_waiting and not _is_silent(still) for status, still in seen)
        hint = "; steps that take longer need a larger --stall_timeout" if may_compute else ""
        return f"nothing has moved for {longest:.0f} s (--stall_timeout={limit:g}): {told}{hint}"


def _is_silent(still: Standstill) -> bool:
    return still.silent > 3 * _TICK_SECONDS


def _blame(status: Status, still: Standstill) -> tuple[bool, bool]:
    """Sorts the culprits to the front: those that are stopped, then those that are stuck in Python."""
    return not _is_silent(still), status.is_waiting


def _describe(status: Status, still: Standstill) -> str:
    who = f"worker {status.rank} (pid {status.pid} on {status.host})"
    if _is_silent(still):
        how = "is stopped (SIGSTOP)" if _is_stopped(status) else "gives no sign of life"
        return f"{who} {how} in {status.phase}"
    return f"{who} {'waits or computes' if status.is_waiting else 'is stuck'} in {status.phase}, at {status.where}"


def _is_stopped(status: Status) -> bool:
    if status.host != socket.gethostname():
        return False
    with contextlib.suppress(OSError), open(f"/proc/{status.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    return False


# ------------------------------------------------------------------------------------------ what workers publish


def publish(folder: str, status: Status) -> None:
    """Writes a worker's status; a folder that cannot be written, as on a full disk, is no reason to end a run.

    Then the last status goes: it would stay as it is, like that of a worker that is stopped. The folder is made if it
    is missing, but not the one that it lies in: a workdir that is refused stays as it is.
    """
    path = _path(folder, status.rank)
    try:
        if not os.path.isdir(folder):
            os.mkdir(folder)
        with open(f"{path}.new", "w") as file:
            json.dump(status, file)
        os.replace(f"{path}.new", path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(path)


def read(folder: str, ranks: Iterable[int]) -> list[Status]:
    """The newest statuses of some workers; those that have not published yet are left out."""
    found = []
    for rank in ranks:
        with contextlib.suppress(OSError, ValueError, TypeError), open(_path(folder, rank)) as file:
            found.append(Status(*json.load(file)))
    return found


def _path(folder: str, rank: int) -> str:
    return os.path.join(folder, f"rank{rank:05d}.status")


# ------------------------------------------------------------------------------------------------ a worker's own thread


class _Thread(threading.Thread):
    """Publishes, looks, and ends this process when nothing moves.

    Args:
      rank: of this worker.
      size: of the job.
      folder: which all workers see.
    """

    def __init__(self, rank: int, size: int, folder: str):
        super().__init__(name="watchdog", daemon=True)
        self.rank, self.size, self.folder = rank, size, folder
        self.limit = self.silence = 0.0
        self.done = threading.Event()
        self._lock, self._ticks, self._moved = threading.Lock(), 0, -1
        self._main = threading.main_thread().ident
        self._parent = os.getppid()

    def run(self) -> None:
        is_first = self.rank == 0
        watch, orphaned = Watch(range(self.size) if is_first else [0], judges_work=is_first), 0
        while not self.done.wait(_TICK_SECONDS):
            self.tick()
            watch.look(self.folder)
            sentence = watch.sentence(later=_LATER_SECONDS * min(self.rank, 5))
            if sentence:
                self._end(sentence)
            orphaned = orphaned + 1 if job.is_orphaned() else 0
            if os.getppid() != self._parent or orphaned * _TICK_SECONDS > _ORPHAN_SECONDS:
                os._exit(STALLED_STATUS)  # mpirun is gone, or the launcher for long: nobody is left to tell.

    def tick(self) -> None:
        """Publishes."""
        with self._lock:
            last = stamps.last()
            stands_still, self._moved, self._ticks = last.number == self._moved, last.number, self._ticks + 1
            publish(self.folder, self._status(self._ticks, last, stands_still))

    def _status(self, ticks: int, last: stamps.Stamp, stands_still: bool) -> Status:
        where, is_waiting = "", False
        frame = sys._current_frames().get(self._main or 0) if stands_still else None
        if frame is not None:
            where, is_waiting = _place(frame)
        me = (self.rank, os.getpid(), socket.gethostname())
        return Status(*me, ticks, last.number, str(last), where, is_waiting, self.limit, self.silence)

    def _end(self, sentence: str) -> None:
        job.record_error(sentence, is_said=True)
        with contextlib.suppress(OSError):
            os.write(2, f"error: {sentence}\n".encode())
        os._exit(STALLED_STATUS)


def _place(frame: FrameType) -> tuple[str, bool]:
    """The innermost line outside of TensorFlow, and whether the work is inside of it."""
    inside = "/tensorflow/" in frame.f_code.co_filename
    place: FrameType | None = frame
    while place is not None and "/tensorflow/" in place.f_code.co_filename:
        place = place.f_back
    place = place or frame
    name = os.path.relpath(place.f_code.co_filename, os.path.dirname(_PACKAGE))
    if name.startswith(".."):
        name = os.path.basename(name)
    return f"{name}:{place.f_lineno} ({place.f_code.co_name})", inside


_thread: _Thread | None = None


def _clear(thread: _Thread) -> None:
    """Takes away what this worker has put into the workdir."""
    global _thread
    _thread = None
    thread.done.set()
    thread.join()
    with contextlib.suppress(OSError):
        os.remove(_path(thread.folder, thread.rank))
        os.rmdir(thread.folder)  # by the last one


def start(folder: str) -> None:
    """Starts the thread of a worker that a launcher started; it ends nothing that only works for long.

    Args:
      folder: which all workers see; the one that it lies in is there, or will be.
    """
    global _thread
    launched = launched_rank_and_size()
    if launched is not None and _thread is None:
        _thread = _Thread(*launched, folder)
        _thread.silence = STALL_TIMEOUT
        _thread.start()


@contextlib.contextmanager
def watching(limit: float, workdir: str) -> Iterator[None]:
    """Within it, a job of several workers whose work stands still for so long is ended.

    Args:
      limit: seconds between two stamps of a worker; 0 for as long as it likes.
      workdir: of the run, which all workers see: for the workers' files if the launcher has no folder for them.
    """
    start(os.path.join(workdir, FOLDER_NAME))
    if _thread is None:
        yield
        return
    if limit:  # Horovod, which looks once in so many seconds, is to name what it waits for first.
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(max(1, min(60, int(limit / 4)))))
    _thread.limit = _thread.silence = limit
    _thread.tick()  # the limit is known from now on, whatever happens
    try:
        yield
    finally:
        _thread.limit, _thread.silence = 0.0, STALL_TIMEOUT
        if os.path.basename(_thread.folder) == FOLDER_NAME:
            _clear(_thread)
