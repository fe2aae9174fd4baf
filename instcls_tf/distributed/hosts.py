"""The machines of a job: as `-H` names them, and whether they answer before anything is started there."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from instcls_tf.distributed import cores
from instcls_tf.errors import UserError, one_line

_HOST = re.compile(r"([\w.-]+)(?::(\d+))?")
_SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=10"
# Options of ssh that users, and Kubeflow, give to Open MPI.
USERS_SSH_OPTIONS = "OMPI_MCA_plm_rsh_args"
# A host that lets one in and then hangs, as with a home on a file server that is gone.
_ANSWER_SECONDS = 25.0
# What ssh says, and what it means; the others are quoted.
_REASONS = (
    ("Permission denied", "accepts no key of this user: ssh-copy-id {host}, so that ssh asks for no password"),
    ("Host key verification failed", "has a key that this user has not accepted: ssh {host} once by hand"),
    ("Could not resolve hostname", "is no known name of a machine"),
    ("Connection refused", "runs no ssh server that answers"),
    ("timed out", "does not answer"),
    ("No route to host", "cannot be reached"),
)


class Host(NamedTuple):
    """A machine, and how many workers run there."""

    name: str
    slots: int
    left_out: tuple[int, ...] = ()  # places by their numbers from 0, which are those of their GPUs


def parse(text: str) -> tuple[Host, ...]:
    """`a:8,b:8` as hosts.

    Raises:
      UserError: it is not of that form, or names a host twice.
    """
    hosts = []
    for part in text.split(","):
        found = _HOST.fullmatch(part.strip())
        if not found or found[2] == "0":
            raise UserError(f"-H={text}: {part!r} is no host, wanted NAME:WORKERS with commas between them")
        hosts.append(Host(found[1], int(found[2] or 1)))
    names = [host.name for host in hosts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"-H={text}: names {name} twice, wanted each host once, with all of its workers")
    return tuple(hosts)


def is_here(name: str) -> bool:
    """Whether a host is the machine of this process."""
    own = socket.gethostname()
    return name in ("localhost", "127.0.0.1", own, own.partition(".")[0])


def take(hosts: Sequence[Host], workers: int) -> tuple[Host, ...]:
    """The hosts of the first so many workers, in the order in which they are filled."""
    taken: list[Host] = []
    for host in hosts:
        slots = min(host.slots, workers - sum(other.slots for other in taken))
        if slots > 0:
            taken.append(host._replace(slots=slots))
    return tuple(taken)


def of_rank(hosts: Sequence[Host], rank: int) -> tuple[str, int]:
    """The host on which a worker runs, and its place among those there."""
    return [(host.name, local_rank) for host in hosts for local_rank in range(host.slots)][rank]


def without_one(hosts: Sequence[Host], name: str, local_rank: int) -> tuple[Host, ...]:
    """The hosts with one worker less on one of them, whose place is left out from now on."""
    fewer = []
    for host in hosts:
        if host.name == name:
            places = [place for place in range(host.slots + len(host.left_out)) if place not in host.left_out]
            host = Host(name, host.slots - 1, (*host.left_out, places[local_rank]))
        fewer.append(host)
    return tuple(host for host in fewer if host.slots > 0)


def unused_gpus(hosts: Sequence[Host]) -> str:
    """What is left out on the host of each worker, as `gpus.unused` reads it."""
    return ",".join("+".join(map(str, host.left_out)) for host in hosts for _ in range(host.slots))


class Seen(NamedTuple):
    """What a machine answered."""

    problem: str  # a sentence, if workers cannot be started there
    allowed_cores: int = 1  # those whose time its processes may have


def look(hosts: Sequence[Host]) -> dict[str, Seen]:
    """Asks the machines, all at once, by ssh those that are not this one."""
    names = [host.name for host in hosts]
    with ThreadPoolExecutor(max(1, min(32, len(names)))) as pool:
        return dict(zip(names, pool.map(_look, names)))


def problems(seen: Mapping[str, Seen]) -> dict[str, str]:
    """What keeps workers from being started on machines, by their names; a sentence each."""
    return {name: answer.problem for name, answer in seen.items() if answer.problem}


def shares(hosts: Sequence[Host], seen: Mapping[str, Seen]) -> dict[str, int]:
    """How many threads a worker would compute with on each of the hosts, by the cores that it has; nobody is bound."""
    return {host.name: cores.share(seen[host.name].allowed_cores, host.slots) for host in hosts}


def ssh_options(environment: Mapping[str, str]) -> str:
    """Those of every ssh of a job, parted by spaces as Open MPI has them; of one given twice ssh takes the first."""
    return f"{_SSH_OPTIONS} {environment.get(USERS_SSH_OPTIONS, '')}".strip()


# Also whether the environment is there; that the project is, workers find out.
_COUNT = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.dirname(__file__)))!r})
try:
    from instcls_tf.distributed.cores import allowed
except ImportError:
    allowed = lambda: len(os.sched_getaffinity(0))
print(allowed())
"""


def _look(name: str) -> Seen:
    if is_here(name):
        return Seen("", cores.allowed())
    command = shlex.join([sys.executable, "-c", _COUNT])
    try:
        answer = subprocess.run(
            ["ssh", *ssh_options(os.environ).split(), name, command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Seen(f"host {name}: does not answer")
    except FileNotFoundError:
        return Seen(f"host {name}: cannot be asked, there is no ssh on this machine")
    if answer.returncode == 0:
        return Seen("", int(answer.stdout.split()[-1]))
    if answer.returncode != 255:  # of the command, not of ssh
        return Seen(f"host {name}: has no {sys.executable}, wanted the same environment at the same path on all hosts")
    said = " ".join(answer.stderr.split())
    for part, meaning in _REASONS:
        if part.lower() in said.lower():
            return Seen(f"host {name}: {meaning.format(host=name)}")
    return Seen(f"host {name}: cannot be reached with ssh ({one_line(said[-200:])})")
