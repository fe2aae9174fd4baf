"""Jobs under the launcher, looked at and hurt while they run, and what is left of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import psutil

from tests.commands import ROOT, TIMEOUT, Finished, user_environment

RANK = "OMPI_COMM_WORLD_RANK"
STANDIN = "tests.faults.standin.pretrain"


def launcher(workers: int, *words: object) -> list[str]:
    """The words of a launcher's command; its own flags, the command and its flags follow the number of workers."""
    return [sys.executable, "-m", "scripts.launch", "-np", str(workers), *map(str, words)]


class Job:
    """A command that runs; `finish` waits for its end.

    Args:
      words: its command line.
      **changes: of its environment.
    """

    def __init__(self, words: list[str], **changes: str):
        self._streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        environment = {**user_environment(), **changes}
        self.process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=self._streams[0],
            stderr=self._streams[1], start_new_session=True,
        )  # fmt: skip
        self.started = psutil.Process(self.process.pid)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Waits for what the job is to reach; the test fails if it ends before."""
        end = time.monotonic() + TIMEOUT
        while not is_so():
            assert self.process.poll() is None, self.read()
            assert time.monotonic() < end, self.read()
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """All that the job has started."""
        return self.started.children(recursive=True)

    def named(self, name: str) -> list[psutil.Process]:
        """Those of its processes that bear a name."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process] if name in process.name() else []
        return found

    def mpirun(self) -> psutil.Process:
        """The job's mpirun."""
        (process,) = self.named("orterun")
        return process

    def worker(self, rank: int) -> psutil.Process:
        """One of its workers."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(RANK) == str(rank):
                    return process
        raise LookupError(rank)

    def read(self) -> Finished:
        """What it has said so far."""
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read())
        return Finished(self.process.poll(), *texts)

    def finish(self) -> Finished:
        """Waits for its end."""
        self.process.wait(TIMEOUT)
        return self.read()


@contextlib.contextmanager
def running(words: list[str], **changes: str) -> Iterator[Job]:
    """A job of which nothing is left afterwards, or the test fails."""
    job = Job(words, **changes)
    seen: list[psutil.Process] = []
    finish, job.processes = job.finish, _remembering(job.processes, seen)  # type: ignore[method-assign]

    def finish_and_look() -> Finished:
        job.processes()
        return finish()

    job.finish = finish_and_look  # type: ignore[method-assign]
    try:
        yield job
        _, left = psutil.wait_procs(seen, timeout=10)
        assert left == [], "no process is left after ten seconds"
    finally:
        for process in [job.started, *seen]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        job.process.wait()


def _remembering(find: Callable[[], list[psutil.Process]], seen: list[psutil.Process]) -> Callable:
    def found() -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            seen[:] = list({*seen, *find()})
        return seen

    return found


def saved(workdir: Path) -> list[int]:
    """The steps of the checkpoints in a workdir."""
    names = {path.name.partition(".")[0] for path in (workdir / "checkpoints").glob("ckpt-*")}
    return sorted(int(name.removeprefix("ckpt-")) for name in names)


def standin(workdir: Path, *words: object, options: tuple[object, ...] = (), workers: int = 2) -> list[str]:
    """The stand-in for pretraining under the launcher."""
    return launcher(workers, *options, STANDIN, f"--workdir={workdir}", *words)


def hurt(job: Job, workdir: Path, *victims: Callable[[], psutil.Process], how: int = signal.SIGKILL) -> None:
    """Sends processes of a job a signal when it has saved twice."""
    job.wait_until(lambda: len(saved(workdir)) > 1)
    job.processes()
    for victim in [victim() for victim in victims]:
        victim.send_signal(how)


def waits_for(stopped: psutil.Process, waiting: psutil.Process) -> bool:
    """Whether a worker of the stand-in is stopped, and another has arrived at a collective that it has not."""
    environment, rank = stopped.environ(), waiting.environ()[RANK]
    arrived = Path(environment["INSTCLS_JOB"]).glob(f"step*.{rank}")
    ahead = [path for path in arrived if not path.with_suffix(f".{environment[RANK]}").exists()]
    return stopped.status() == psutil.STATUS_STOPPED and ahead != []


def job_folders() -> set[str]:
    """The folders that launchers have left."""
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("instcls-job-")}


def last_line(stderr: str) -> str:
    return stderr.splitlines()[-1]


def attempts(workdir: Path) -> list[str]:
    """Workers and first step of each attempt."""
    return (workdir / "attempts").read_text().splitlines()
