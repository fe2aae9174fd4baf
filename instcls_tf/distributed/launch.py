"""The supervisor around `mpirun`: signals, standstill, orphans, the one cause of a failure. No TensorFlow.

Three processes could outlive each other: the supervisor, mpirun, a worker. mpirun has a signal sent to it when the
supervisor is gone, workers one when mpirun is (`job.die_with_parent`), and what is left of a job after that bears the
job's folder in its environment and is ended by name.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from instcls_tf import files
from instcls_tf.distributed import cores, gpus, job, loopback, mpirun, watchdog
from instcls_tf.distributed import hosts as machines
from instcls_tf.distributed.forwarded_signals import ENDING, ForwardedSignals
from instcls_tf.distributed.hosts import Host
from instcls_tf.distributed.job import STOPPED_STATUS
from instcls_tf.distributed.restarts import Options, Outcome, Restarts
from instcls_tf.errors import UserError, one_line, shown

_FAILED_STATUS, _USER_ERROR_STATUS = 1, 2
_LOOK_SECONDS = 0.5
# The workers' own watchdogs speak before this one, which is for jobs of which no worker runs any more.
_LATER_SECONDS = 8.0
# mpirun gives its workers a second before it kills them.
_KILL_SECONDS = 10.0
_FOLDER_PREFIX = "instcls-job-"


def supervise(options: Options, words: Sequence[str], is_resumable: bool, workdir: str | None) -> int:
    """Runs a command on its workers to the end, with restarts; returns the exit status.

    0: done. 75: asked to stop, saved. 2: a user's mistake, which has been said. 70: nothing moved. 1: anything else.

    Args:
      options: where, how many, how often.
      words: the workers' command.
      is_resumable: it saves and stops when it gets SIGUSR1, and goes on when it is started again.
      workdir: where it saves, for the files of a job on several machines; None if that is not known.

    Raises:
      UserError: a host cannot be used.
    """
    with ForwardedSignals(is_resumable) as signals:
        restarts = Restarts(options, workdir, _say)
        while True:
            hosts, threads = restarts.hosts, _threads(machines.shares(restarts.hosts, restarts.seen))
            with _folder(hosts, workdir) as folder:
                outcome = _Attempt(hosts, words, folder, signals, threads).run()
            is_final = outcome.status in (0, STOPPED_STATUS) or outcome.is_mistake or signals.asked is not None
            if is_final or not restarts.follow(outcome):
                return outcome.status


def _threads(shares: Mapping[str, int]) -> int | None:
    """The number of threads that all workers are to compute with; None if that is what each of them would take.

    Sums are rounded by the number of threads, and the fastest worker waits for the slowest in every step.
    """
    fewest = min(shares, key=lambda name: shares[name])
    if cores.THREADS in os.environ or len(set(shares.values())) == 1:
        return None
    told = ", ".join(f"{name} {share}" for name, share in shares.items())
    _say(f"hosts differ in cores per worker ({told}): all compute with {shares[fewest]} thread(s), as on {fewest}")
    return shares[fewest]


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(one_line(line) + "\n")
        sys.stderr.flush()


def _remove_left(where: str) -> None:
    """Folders of launchers on this machine that were killed; another one's name may begin as this one's does."""
    own = re.compile(re.escape(f"{_FOLDER_PREFIX}{files.machine()}") + r"-(\d+)-[^-]+")
    for left in Path(where).glob(f"{_FOLDER_PREFIX}*"):
        found = own.fullmatch(left.name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            shutil.rmtree(left, ignore_errors=True)


def _nearest(path: str) -> str:
    """The folder itself, or that in which it will be made."""
    where = os.path.abspath(path)
    while not os.path.isdir(where):
        where = os.path.dirname(where)
    return where


@contextlib.contextmanager
def _folder(hosts: Sequence[Host], workdir: str | None) -> Iterator[str]:
    """The job's folder: on this machine, or with workers elsewhere by the workdir, which they share.

    Raises:
      UserError: it cannot be made.
    """
    is_here = workdir is None or all(machines.is_here(host.name) for host in hosts)
    try:
        where = tempfile.gettempdir() if is_here else _nearest(workdir or "")
        _remove_left(where)
        folder = tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{files.machine()}-{os.getpid()}-", dir=where)
        Path(folder, job.MARK).touch()
    except OSError as error:
        given = f"TMPDIR={shown(os.environ.get('TMPDIR', '/tmp'))}" if is_here else f"--workdir={shown(workdir)}"
        told = f"the launcher cannot make a folder of its own there ({error.strerror})"
        raise UserError(f"{given}: {told}, wanted one with room that this user may write to") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ an attempt


class _Attempt:
    """One run of the command on all workers.

    Args:
      hosts: with as many slots as there are workers.
      words: the workers' command.
      folder: of the job.
      signals: told which process to pass signals to.
      threads: of each worker, if machines differ.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        words: Sequence[str],
        folder: str,
        signals: ForwardedSignals,
        threads: int | None = None,
    ):
        self._hosts, self._words, self._folder, self._signals, self._threads = hosts, words, folder, signals, threads
        self._workers = sum(host.slots for host in hosts)
        self._filter, self._watch = mpirun.Filter(), watchdog.Watch(range(self._workers))
        self._standstill: str | None = None

    def run(self) -> Outcome:
        """Starts the workers, waits for them, ends what is left of them, and says why they failed if they did."""
        process = self._start()
        self._signals.process = process
        self._filter = mpirun.Filter(process.pid)
        try:
            self._follow(process)
        finally:
            status = _end(process, patience=0.0 if self._standstill else _KILL_SECONDS)
            self._signals.process = None
            _end_members(self._folder)
        self._show(self._filter.close())
        return self._judge(status)

    def _start(self) -> subprocess.Popen:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")}
        environment[job.FOLDER] = self._folder
        if self._threads is not None:
            environment[cores.THREADS] = str(self._threads)
        if any(host.left_out for host in self._hosts):
            environment[gpus.UNUSED] = machines.unused_gpus(self._hosts)
        environment[job.LAUNCHER] = f"{os.getpid()}@{files.machine()}"
        if os.isatty(2):
            environment[job.TERMINAL] = f"{os.ttyname(2)}@{files.machine()}"
        command = mpirun.command(self._hosts, self._words, environment)
        if "LD_PRELOAD" in " ".join(command):
            library = loopback.library()
            if library is None:
                _say("mpirun listens on all interfaces: there is no compiler to keep it to this machine")
            else:
                earlier = environment.get("LD_PRELOAD")
                environment["LD_PRELOAD"] = f"{library}:{earlier}" if earlier else str(library)
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the supervisor, which passes it on
            preexec_fn=self._signals.become_mpirun,
        )

    def _follow(self, process: subprocess.Popen) -> None:
        """Passes on what the workers say until mpirun has ended, or nothing moves any more."""
        stream = process.stderr.fileno()  # type: ignore[union-attr] # it is a pipe
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        looked = time.monotonic()
        while True:
            if select.select([stream], [], [], _LOOK_SECONDS)[0]:
                piece = os.read(stream, 2**16)
                if not piece:
                    return
                self._show(self._filter.feed(decoder.decode(piece)))
            elif process.poll() is not None:
                return
            if time.monotonic() - looked >= _LOOK_SECONDS:
                looked = time.monotonic()
                self._signals.look()
                self._watch.look(self._folder)
                self._standstill = self._watch.sentence(later=_LATER_SECONDS)
                if self._standstill:
                    return

    @staticmethod
    def _show(text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()

    def _judge(self, status: int) -> Outcome:
        """Says what was the cause, as the last line, unless the worker itself has."""
        if status in (0, STOPPED_STATUS):
            return Outcome(status, None)
        errors = job.read_errors(self._folder)
        ended = self._filter.ended()
        if self._signals.asked is not None and not errors:
            goes_on = "ended at once; the same command goes on from its last checkpoint"
            how = goes_on if self._signals.is_resumable else "ended before it was done"
            _say(f"{self._signals.asked.name}: {how}")
            return Outcome(self._signals.status(), None)
        if self._standstill and not errors:
            _say(f"error: {self._standstill}")
            return Outcome(watchdog.STALLED_STATUS, None)
        # Those whom a dead worker leaves waiting fail as well, later, in Horovod's words.
        first = next((error for error in errors if "Horovod" not in error.sentence), None)
        is_killed = ended is not None and ended.signal not in (0, signal.SIGTERM)
        if first is None and errors and not is_killed:
            first = errors[0]
        if first is not None:
            # A mistake that all workers see is rank 0's to tell.
            first = min((error for error in errors if error.sentence == first.sentence), key=lambda error: error.rank)
            self._tell(first)
            if status == watchdog.STALLED_STATUS:
                return Outcome(status, None)  # who tells it need not be who is stuck
            # What the workers have found together is no more that of the one that tells it than of the others.
            rank = first.rank if first.trace else None
            return Outcome(status if status == _USER_ERROR_STATUS else _FAILED_STATUS, rank, first.is_mistake)
        if ended is None:
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            _say(f"error: mpirun was ended {how}" if status < 0 else f"error: mpirun ended {how}")
            return Outcome(_FAILED_STATUS, None)
        _say(f"error: {'' if ended.rank is None else f'worker {ended.rank} '}{ended.sentence}")
        return Outcome(_FAILED_STATUS, ended.rank)

    @staticmethod
    def _tell(error: job.WorkerError) -> None:
        if error.is_said:
            return
        if error.trace:
            sys.stderr.write(error.trace)
        _say(f"error: worker {error.rank} on {error.host}: {error.sentence}")


def _end(process: subprocess.Popen, patience: float) -> int:
    """Waits for mpirun for a while, then ends it; returns its status, negative for a signal."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(patience)
    process.send_signal(ENDING)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_KILL_SECONDS)
    process.kill()
    return process.wait()


def _end_members(folder: str) -> None:
    """Kills what is left of a job on this machine: processes of this user that bear its folder in their environment."""
    mark = f"{job.FOLDER}={folder}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
