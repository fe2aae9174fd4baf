"""Child processes side by side, each on cores of its own, with its output in a log."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import resource
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterator
from typing import BinaryIO, NamedTuple

from instcls_tf.errors import UserError, shown
from instcls_tf.run.metrics import read_json_lines
from instcls_tf.sweep.results import append_line, commit

LOG_NAME, ATTEMPTS_NAME = "log.txt", "attempts.jsonl"
# What the log of a run says that has diverged: of TensorFlow, which checks the loss, and of what judges features.
_DIVERGED = re.compile(r"\b(NaN|Inf) values|not finite|diverged?\b")
_LOOK_EVERY = 0.2  # seconds
_PATIENCE = 60.0  # seconds for a process to end that was asked to: a run makes its step and saves
_TAIL_BYTES = 8192


class Job(NamedTuple):
    """Commands that follow each other as long as they succeed; `folder` receives what they say."""

    name: str
    folder: str
    commands: tuple[tuple[str, ...], ...]


class Ended(NamedTuple):
    """How a job ended: the status of its last command (below 0: the signal that ended it) and the end of its log."""

    job: Job
    status: int
    tail: str

    @property
    def has_diverged(self) -> bool:
        """Whether its command has failed since the loss, or what judges features, met numbers that are none."""
        return self.status > 0 and _DIVERGED.search(self.tail) is not None


class _Running(NamedTuple):
    job: Job
    place: int  # of the command
    cores: frozenset[int]
    process: subprocess.Popen
    log: BinaryIO
    started: float
    commit: str | None  # of the code that the process has imported


def places(of_each: int, number: int) -> list[frozenset[int]]:
    """The cores of each place where jobs run side by side, so many each; empty sets where none can be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return [frozenset()] * number
    own = sorted(os.sched_getaffinity(0))
    return [frozenset(own[place * of_each : (place + 1) * of_each]) for place in range(number)]


def run_jobs(
    jobs: list[Job], cores: list[frozenset[int]], keep_open: tuple[int, ...] = ()
) -> Generator[Ended, None, None]:
    """Runs jobs, as many at a time as there are sets of cores; yields each that has ended.

    When the iterator is closed, what still runs is ended.

    Args:
      jobs: in the order in which they start.
      cores: numbers of the cores of each place; an empty set for any.
      keep_open: descriptors that children inherit.
    """
    waiting, free = deque(jobs), deque(cores)
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.popleft(), 0, free.popleft(), keep_open))
            for one in list(running):
                used = _children_cpu_seconds()
                if one.process.poll() is None:
                    continue
                running.remove(one)
                _note(one, _children_cpu_seconds() - used)
                status = one.process.returncode
                if status == 0 and one.place + 1 < len(one.job.commands):
                    running.append(_start(one.job, one.place + 1, one.cores, keep_open))
                    continue
                free.append(one.cores)
                yield Ended(one.job, status, _tail(one.job))
            if running:
                time.sleep(_LOOK_EVERY)
    finally:
        _end(running)


def _start(job: Job, place: int, cores: frozenset[int], keep_open: tuple[int, ...]) -> _Running:
    try:
        os.makedirs(job.folder, exist_ok=True)
        log = open(os.path.join(job.folder, LOG_NAME), "ab")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{shown(job.folder)}: cannot write a log there ({error.strerror})") from error
    code = commit()  # asks Git: a signal that came then would leave a process behind
    with _on_cores(cores):
        process = subprocess.Popen(
            job.commands[place], stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=keep_open
        )
    return _Running(job, place, cores, process, log, time.monotonic(), code)


@contextlib.contextmanager
def _on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Children take over the cores that this thread may run on at the moment when they start."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _children_cpu_seconds() -> float:
    """Of all processes that were waited for, with theirs: what it grows by when one is, that one has used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _note(one: _Running, cpu_seconds: float) -> None:
    """What a command has really taken, interrupted ones included."""
    one.log.close()
    line = {
        "command": _name_of(one.job.commands[one.place]),
        "seconds": round(time.monotonic() - one.started, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "status": one.process.returncode,
        "commit": one.commit,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    append_line(os.path.join(one.job.folder, ATTEMPTS_NAME), line)


def commit_of(job: Job) -> str | None:
    """The commit of the code that the job's first command has run with; where it was interrupted all, with commas."""
    lines = read_json_lines(os.path.join(job.folder, ATTEMPTS_NAME))
    found = [line.get("commit") for line in lines if line["command"] == _name_of(job.commands[0])]
    return ", ".join(dict.fromkeys(commit for commit in found if commit)) or None


def _name_of(command: tuple[str, ...]) -> str:
    return " ".join(command[1:3])


def _tail(job: Job) -> str:
    with open(os.path.join(job.folder, LOG_NAME), "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()


def _end(running: list[_Running]) -> None:
    for one in running:
        one.process.terminate()
    end = time.monotonic() + _PATIENCE  # of all: whoever asked waits for the slowest, not for one after the other
    for one in running:
        used = _children_cpu_seconds()
        try:
            one.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        _note(one, _children_cpu_seconds() - used)
