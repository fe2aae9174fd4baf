"""Two hosts made of namespaces: a network, a name and mounts of their own, a link between them, and ssh.

Both ends of the link bear the same name, as Open MPI wants it; each host has its own /etc/hosts and one core, and
shares all other files. Root is needed, and iproute2, util-linux and OpenSSH's server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.commands import ROOT

_TOOLS = ("ip", "nsenter", "unshare", "mount", "taskset", "ssh", "ssh-keygen")
_SSHD = "/usr/sbin/sshd"
LINK = "eth0"
NAMES = ("north", "south")


class Host(NamedTuple):
    """One of them."""

    name: str
    pid: int  # of the process that keeps its namespaces
    cores: str  # as taskset names them

    def inside(self, *words: object) -> list[str]:
        """A command line that runs there, from the root of the repository, on the host's cores."""
        into = ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount"]
        return [*into, "env", f"--chdir={ROOT}", "taskset", "-c", self.cores, *map(str, words)]

    def do(self, *words: object) -> None:
        """Runs a command there that must succeed."""
        subprocess.run(self.inside(*words), check=True, capture_output=True, text=True)

    def link(self, state: str) -> None:
        """Has its end of the link `up` or `down`."""
        self.do("ip", "link", "set", LINK, state)

    def processes(self) -> list[psutil.Process]:
        """What runs there, but for what makes it a host."""
        own = os.readlink(f"/proc/{self.pid}/ns/net")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.readlink(f"/proc/{process.pid}/ns/net") == own and process.pid != self.pid:
                    found += [] if process.name() == "sshd" else [process]
        return found


def refusal() -> str | None:
    """Why there can be no such hosts here; None if there can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if not os.path.exists(_SSHD):
        missing.append("sshd")
    if missing:
        return f"two hosts need {', '.join(missing)}"
    if os.geteuid() != 0:
        return "two hosts need root, to make network namespaces"
    if len(os.sched_getaffinity(0)) < 2:
        return "two hosts need a core each"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"],
        capture_output=True, text=True,
    )  # fmt: skip
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """The hosts `north` and `south`, of which nothing is left afterwards.

    Args:
      folder: for keys and settings; with `authorized_keys`, which may be changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_settings(folder)
    keepers: list[subprocess.Popen] = []
    servers: list[subprocess.Popen] = []
    hosts: list[Host] = []
    try:
        for name, core in zip(NAMES, sorted(os.sched_getaffinity(0))):
            keepers.append(_keep(folder, name))
            hosts.append(Host(name, keepers[-1].pid, str(core)))
        _connect(hosts)
        for host in hosts:
            servers.append(subprocess.Popen(host.inside(_SSHD, "-D", "-f", folder / "sshd_config"), **_QUIET))
        wait_for_servers(hosts)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            for process in host.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        for process in [*servers, *keepers]:
            process.kill()
            process.wait()


_QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _write_settings(folder: Path) -> None:
    for key in ("key", "host_key"):
        if not (folder / key).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"* {host_key}")
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address(name)} {name}\n" for name in NAMES))
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/key\nIdentitiesOnly yes\nGlobalKnownHostsFile {folder}/known_hosts\n"
        "UserKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
    )
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nUsePAM no\n"
        "StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )


def address(name: str) -> str:
    """The address of a host."""
    return f"10.231.7.{1 + NAMES.index(name)}"


def _keep(folder: Path, name: str) -> subprocess.Popen:
    """A process with namespaces of its own, which keeps them."""
    script = """
    hostname "$2" && ip link set lo up && mount -t tmpfs none /run && mkdir /run/sshd &&
    mount --bind "$1/hosts" /etc/hosts &&
    mount --bind "$1/ssh_config" /etc/ssh/ssh_config && { [ ! -d ~/.ssh ] || mount -t tmpfs none ~/.ssh; } &&
    echo ready && exec sleep infinity
    """
    command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", script, "sh", str(folder), name]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise OSError(f"no namespaces for {name}")
    return process


def _connect(hosts: Sequence[Host]) -> None:
    one, other = hosts
    words = ["ip", "link", "add", LINK, "netns", str(one.pid), "type", "veth", "peer", "name", LINK]
    subprocess.run([*words, "netns", str(other.pid)], check=True)
    for host in hosts:
        host.do("ip", "address", "add", f"{address(host.name)}/24", "dev", LINK)
        host.link("up")


def wait_for_servers(hosts: Sequence[Host]) -> None:
    """Until each of the two hosts can be reached from the other."""
    end = time.monotonic() + 60
    one, other = hosts
    for here, there in ((one, other), (other, one)):
        while subprocess.run(here.inside("ssh", "-o", "BatchMode=yes", there.name, "true"), **_QUIET).returncode:
            if time.monotonic() > end:
                raise TimeoutError(f"no ssh server on {there.name}")
            time.sleep(0.2)
