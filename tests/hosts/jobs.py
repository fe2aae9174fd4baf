"""A run on the two hosts, watched and hurt while it goes on."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from tests.commands import ROOT, TIMEOUT, user_environment
from tests.faults.conftest import RECIPE
from tests.hosts.network import Host

BOTH = ("-H", "north:1,south:1")
# Steps between two checkpoints: an epoch.
EPOCH = 30


def recipe(folder: Path, workdir: str, epochs: int) -> list[str]:
    """The flags of a run of `8 * EPOCH` pictures in `folder / "photos"`."""
    settings = {**RECIPE, "epochs": epochs, "dataset": f"folder:{folder / 'photos'}", "workdir": folder / workdir}
    return [f"--{name}={value}" for name, value in settings.items()]


def launch(*words: object) -> list[str]:
    """The launcher's command line."""
    return [sys.executable, "-m", "scripts.launch", *map(str, words)]


def losses(workdir: Path) -> list[float]:
    """Those of all steps that a run has logged."""
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return []


class Job:
    """A command on a host, in the environment of a user.

    Args:
      host: where the launcher runs.
      words: its command line.
      said: a file for all that it says.
      workdir: of the run.
    """

    def __init__(self, host: Host, words: Sequence[str], said: Path, workdir: Path):
        self.workdir, self._said, self._cut = workdir, said, 0.0
        self.started = time.monotonic()
        with open(said, "w") as stream:
            self.process = subprocess.Popen(
                host.inside(*words), cwd=ROOT, env=user_environment(), stdin=subprocess.DEVNULL, stdout=stream,
                stderr=stream, start_new_session=True,
            )  # fmt: skip

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        """Waits for what the run is to reach.

        Raises:
          AssertionError: it has ended before, or takes for ever.
        """
        end = time.monotonic() + TIMEOUT
        while not is_so():
            assert self.process.poll() is None, f"ended before {what}: {self.said()}"
            assert time.monotonic() < end, f"never {what}: {self.said()}"
            time.sleep(0.1)

    def wait_for_step(self, step: int) -> None:
        """Waits until the run has logged a step."""
        self.wait_until(lambda: len(losses(self.workdir)) >= step, f"step {step}")

    def finish(self) -> int:
        """Waits for its end; returns its exit status."""
        return self.process.wait(TIMEOUT)

    def stop(self) -> None:
        """Asks the launcher to stop."""
        self.process.send_signal(signal.SIGTERM)

    def said(self) -> str:
        """Everything, so far."""
        return self._said.read_text()

    def last_line(self) -> str:
        """Of what it has said."""
        return next(iter(self.said().splitlines()[-1:]), "")


def seconds_until_empty(hosts: Sequence[Host], limit: float = 60.0) -> list[float]:
    """Seconds until nothing runs on each of the hosts; the limit if it still does."""
    started, left = time.monotonic(), {}
    while len(left) < len(hosts) and time.monotonic() - started < limit:
        for host in hosts:
            if host.name not in left and not host.processes():
                left[host.name] = time.monotonic() - started
        time.sleep(0.1)
    return [left.get(host.name, limit) for host in hosts]
