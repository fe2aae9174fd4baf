"""Two hosts, made of namespaces with a link between them: the same run as on one, and what ends it.

`python -m tests.hosts.faults` does more, with real runs and seconds.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import conftest
from tests.faults.jobs import STANDIN, launcher, running, saved
from tests.faults.preloaded.server import STANDS_FOR_A_WORKER
from tests.hosts.jobs import BOTH, Job, launch, losses, seconds_until_empty
from tests.hosts.network import Host, refusal, two_hosts

LONG = "--steps=1000"
_REASON = refusal()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    """The folder of keys and settings."""
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def hosts(settings) -> Iterator[tuple[Host, Host]]:
    with two_hosts(settings) as found:
        yield found


def standin(hosts: tuple[Host, Host], folder: Path, *options: str) -> Job:
    """The stand-in for pretraining, from the first host."""
    words = launch(*(options or BOTH), STANDIN, f"--workdir={folder / 'run'}", LONG)
    return Job(hosts[0], words, folder / "said", folder / "run")


def test_the_run_of_one_host(hosts, past, server, tmp_path):
    """A worker on each of two hosts, one core each: the losses are to the last digit those of two workers on one
    host.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    flags = conftest.flags_of(one, past.photos)
    with running(launcher(2, STANDS_FOR_A_WORKER, *flags), **server.environment) as job:
        assert job.finish().status == 0, job.read().output
    job = Job(hosts[0], launch(*BOTH, "pretrain", *conftest.flags_of(two, past.photos)), tmp_path / "said", two)
    assert job.finish() == 0, job.said()
    assert losses(one) == losses(two) and len(losses(two)) == conftest.STEPS


def test_the_link_is_cut(hosts, tmp_path):
    """The link goes down for good: nothing is left on either host, status 1, one sentence names the host."""
    job = standin(hosts, tmp_path)
    job.wait_until(lambda: len(saved(job.workdir)) > 1, "two checkpoints")
    hosts[1].link("down")
    try:
        assert max(seconds_until_empty(hosts)) < 60, "nothing is left"
        assert job.finish() == 1
        assert job.last_line() == (
            "error: the connection to host south is lost: the network between, or the machine itself"
        )
    finally:
        hosts[1].link("up")


def test_the_launcher_is_asked_to_stop(hosts, tmp_path):
    """SIGTERM to the launcher: the workers of both hosts save, status 75, nothing is left on either host."""
    job = standin(hosts, tmp_path)
    job.wait_until(lambda: len(saved(job.workdir)) > 1, "two checkpoints")
    job.stop()
    assert job.finish() == 75, job.said()
    assert max(seconds_until_empty(hosts)) < 60, "nothing is left"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("-H", "north:1,west:1"), "error: host west: is no known name of a machine"),
        (("-np", "3", *BOTH), "error: -np=3: -H=north:1,south:1 has 2 place(s), wanted one for each worker"),
    ],
    ids=["unknown", "places"],
)
def test_hosts_that_do_not_fit(hosts, tmp_path, options, sentence):
    """A host that nobody knows, and more workers than places: status 2, one sentence, nothing begun."""
    job = standin(hosts, tmp_path, *options)
    assert (job.finish(), job.said()) == (2, f"{sentence}\n")
    assert not job.workdir.exists()


def test_a_host_that_accepts_no_key(hosts, settings, tmp_path):
    """This user's key is not on the other host: status 2, one sentence says what to do."""
    keys = settings / "authorized_keys"
    accepted = keys.read_text()
    keys.write_text("")
    try:
        job = standin(hosts, tmp_path)
        assert job.finish() == 2
    finally:
        keys.write_text(accepted)
    assert job.said() == (
        "error: host south: accepts no key of this user: ssh-copy-id south, so that ssh asks for no password\n"
    )


def test_hosts_leave_nothing(settings):
    """The hosts themselves: their processes and mounts are gone when they are not needed any more."""
    with two_hosts(settings / "more") as (north, south):
        assert not north.processes() and not south.processes()
        kept = [north.pid, south.pid]
    mounts = Path("/proc/mounts").read_text()
    assert str(settings / "more") not in mounts
    for pid in kept:
        assert subprocess.run(["kill", "-0", str(pid)], capture_output=True).returncode != 0
