"""The machines of a job: as `-H` names them, and whether they answer before anything is started there."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from instcls_tf.errors import UserError, one_line

_HOST = re.compile(r"([\w.-]+)(?::(\d+))?")
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
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
            taken.append(Host(host.name, slots))
    return tuple(taken)


def of_rank(hosts: Sequence[Host], rank: int) -> str:
    """The host on which a worker runs."""
    return [host.name for host in hosts for _ in range(host.slots)][rank]


def without_one(hosts: Sequence[Host], name: str) -> tuple[Host, ...]:
    """The hosts with one worker less on one of them."""
    fewer = (Host(host.name, host.slots - (host.name == name)) for host in hosts)
    return tuple(host for host in fewer if host.slots > 0)


def problems(hosts: Sequence[Host]) -> dict[str, str]:
    """What keeps workers from being started on other machines, by their names; a sentence each."""
    remote = [host.name for host in hosts if not is_here(host.name)]
    with ThreadPoolExecutor(max(1, min(32, len(remote)))) as pool:
        found = dict(zip(remote, pool.map(_problem, remote)))
    return {name: problem for name, problem in found.items() if problem}


def _problem(name: str) -> str:
    try:
        answer = subprocess.run(
            [*_SSH, name, "test", "-x", sys.executable], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        return f"host {name}: cannot be asked, there is no ssh on this machine"
    if answer.returncode == 0:
        return ""
    if answer.returncode != 255:  # of the test, not of ssh
        return f"host {name}: has no {sys.executable}, wanted the same environment at the same path on all hosts"
    said = " ".join(answer.stderr.split())
    for part, meaning in _REASONS:
        if part.lower() in said.lower():
            return f"host {name}: {meaning.format(host=name)}"
    return f"host {name}: cannot be reached with ssh ({one_line(said[-200:])})"
