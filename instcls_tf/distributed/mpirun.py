"""Open MPI's `mpirun`: how it is called, and what it says of workers that end, which nobody should have to read."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from instcls_tf.distributed import hosts as machines
from instcls_tf.distributed.hosts import Host
from instcls_tf.errors import UserError

# Around each of its messages.
_RULE = "-" * 74
# Of its messages, those that tell no cause: only that a worker or mpirun has ended, or that the link to a host has.
_WITHOUT_CAUSE = (
    "mpirun detected", "mpirun noticed", "mpirun has exited due to", "WARNING: mpirun has exited before",
    "Primary job", "ORTE has lost communication",
)  # fmt: skip
# Lines outside of messages, of mpirun or of a worker: "[host:1234] ..."; of orted, its like on another host, they go on
# with [[5,0],1], where a worker has another number than 0.
_LINE = re.compile(r"\[[\w.-]+:(\d+)\] (\[\[\d+,0\],\d+\])?")
_SIGNALLED = re.compile(r"process rank (\d+) with PID (\d+) on node (\S+) exited on signal (\d+)")
_EXITED = re.compile(r"Process name: \[\[\d+,\d+\],(\d+)\] Exit code: (\d+)")
_LOST = re.compile(r"Remote daemon: *\S+ on node (\S+)")
_NO_CAUSE = " and said nothing of why"
_RANK = re.compile(r"process rank (\d+)")

# Of the environment, what workers on other machines get: a shell there starts without it.
_FAMILIES = "INSTCLS|HOROVOD|TF|TFDS|XLA|ONEDNN|KMP|MKL|OMP|NCCL|CUDA|OMPI_MCA"
_PASSED_ON = re.compile(
    rf"PATH|PYTHONPATH|LD_LIBRARY_PATH|VIRTUAL_ENV|(https?|HTTPS?|no|NO)_(proxy|PROXY)|({_FAMILIES})_\w+"
)
# In a job of Slurm, Open MPI would count the job's tasks as places, whatever it is told, and start workers by srun.
PLACES_AS_TOLD = {"OMPI_MCA_ras": "^slurm", "OMPI_MCA_plm": "^slurm"}
# How messages travel between machines, unless the environment has another word for it, as for InfiniBand.
_OVER_TCP = {"pml": "ob1", "btl": "^openib"}
# Seconds and counts after which a cut connection between machines ends the job: between 11 and 12, so that one of ten
# does not.
_KEEPALIVE = {"time": 1, "intvl": 1, "probes": 11}


def command(hosts: Sequence[Host], words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command line that starts `words` once for each worker.

    Args:
      hosts: with as many slots as there are workers.
      words: the workers' command.
      environment: of the workers.

    Raises:
      UserError: there is no mpirun.
    """
    here = os.path.dirname(sys.executable)
    mpirun = shutil.which("mpirun", path=here + os.pathsep + environment.get("PATH", ""))
    if mpirun is None:
        raise UserError("mpirun is not there: ./scripts/setup.sh brings it, or activate the environment that has it")
    workers = sum(host.slots for host in hosts)
    where = ",".join(f"{host.name}:{host.slots}" for host in hosts)
    every = [mpirun, "--allow-run-as-root", "-np", str(workers), "-H", where, "-bind-to", "none", "-map-by", "slot"]
    for variable, told in PLACES_AS_TOLD.items():
        every += ["-mca", variable.removeprefix("OMPI_MCA_"), told]
    if all(machines.is_here(host.name) for host in hosts):
        # Shared memory alone: nobody else has to reach the workers.
        local = ["-mca", "pml", "ob1", "-mca", "btl", "self,vader", "-mca", "oob_tcp_if_include", "127.0.0.0/8"]
        preload = environment.get("LD_PRELOAD")
        return [*every, *local, "env", *([f"LD_PRELOAD={preload}"] if preload else ["-u", "LD_PRELOAD"]), *words]
    remote = ["-mca", "plm_rsh_args", machines.ssh_options(environment)]
    for name, value in _OVER_TCP.items():
        remote += [] if f"OMPI_MCA_{name}" in environment else ["-mca", name, value]
    for name, count in _KEEPALIVE.items():
        remote += ["-mca", f"oob_tcp_keepalive_{name}", str(count)]
    if os.path.exists(os.path.join(sys.prefix, "bin", "orted")):
        remote += ["--prefix", sys.prefix]  # ssh does not have it on its PATH
    for name, value in environment.items():
        if _PASSED_ON.fullmatch(name) and name != machines.USERS_SSH_OPTIONS and not _is_of_one_host(name, value):
            remote += ["-x", name]
    return [*every, *remote, *words]


def _is_of_one_host(name: str, value: str) -> bool:
    """The numbers or names of its GPUs; that none is to be used is for all hosts."""
    return name == "CUDA_VISIBLE_DEVICES" and value not in ("", "-1")


class Ended(NamedTuple):
    """How a worker ended, by what mpirun says of it."""

    rank: int | None
    sentence: str
    signal: int  # 0 if it was none


class Filter:
    """Lets the workers' lines pass, what MPI tells in them included, and keeps mpirun's own for `ended`.

    Args:
      pid: of mpirun.
    """

    def __init__(self, pid: int = 0) -> None:
        self._pid = pid
        self._rest = ""
        self._block: list[str] | None = None
        self._own: list[str] = []
        self._causes: list[str] = []

    def feed(self, text: str) -> str:
        """What of the next piece of mpirun's standard error is for people."""
        *lines, self._rest = (self._rest + text).split("\n")
        return "".join(f"{line}\n" for line in lines if self._is_of_a_worker(line))

    def close(self) -> str:
        """What is left at the end."""
        left, self._rest = self._rest, ""
        if self._block:
            self._keep_block(self._block)
        return f"{left}\n" if left and self._is_of_a_worker(left) else ""

    def _is_of_a_worker(self, line: str) -> bool:
        text = line.strip()
        if text == _RULE:
            if self._block is None:
                self._block = []
            else:
                self._keep_block(self._block)
                self._block = None
        elif self._block is not None:
            self._block.append(text)
        elif self._is_own(text):
            self._own.append(text)
        else:
            return True
        return False

    def _is_own(self, text: str) -> bool:
        found = _LINE.match(text)
        if found:
            return int(found[1]) == self._pid or found[2] is not None
        return text.startswith("mpirun: ")

    def _keep_block(self, block: Sequence[str]) -> None:
        message = " ".join(" ".join(block).split())
        self._own.append(message)
        if not message.startswith(_WITHOUT_CAUSE):
            self._causes.append(message)

    def ended(self) -> Ended | None:
        """What mpirun says of the worker that ended first, and MPI of why; None if neither has said anything."""
        ended = self._ended()
        if ended is None or ended.rank is None or not self._causes:
            return ended
        sentence = ended.sentence.replace(_NO_CAUSE, "")
        return ended._replace(sentence=f"{sentence}; MPI: {' '.join(dict.fromkeys(self._causes))}")

    def _ended(self) -> Ended | None:
        for text in self._own:
            found = _SIGNALLED.search(text)
            if found:
                number = int(found[4])
                return Ended(int(found[1]), _of_signal(number, pid=found[2], host=found[3]), number)
        for text in self._own:
            found = _LOST.search(text)
            if found:
                lost = "the network between, or the machine itself"
                return Ended(None, f"the connection to host {found[1]} is lost: {lost}", 0)
        for text in self._own:
            found = _EXITED.search(text)
            if found:
                return Ended(int(found[1]), f"ended with status {found[2]}{_NO_CAUSE}", 0)
        for text in self._own:
            found = _RANK.search(text)
            if found:
                return Ended(int(found[1]), f"ended before the others{_NO_CAUSE}", 0)
        return Ended(None, f"mpirun: {self._own[0]}", 0) if self._own else None


def _of_signal(number: int, pid: str, host: str) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    why = ": by somebody, or by the system because memory ran out" if number == signal.SIGKILL else ""
    return f"(on {host}) was ended by {name}{why}"
