"""With which workers, and when, a job that failed is started again. No TensorFlow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from instcls_tf.distributed import hosts as machines
from instcls_tf.distributed.hosts import Host
from instcls_tf.errors import UserError
from instcls_tf.workdir_files import CHECKPOINT_PREFIX, CHECKPOINTS_NAME

# Between two looks at machines that do not answer.
_ASK_SECONDS = 2.0
# Before a restart, if no worker is known to have failed and nothing was saved: what a machine lacks may take its time.
# Twice as long each time.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 60.0


class Options(NamedTuple):
    """What is launched where."""

    hosts: tuple[Host, ...]  # may have more places than workers: they are for those of machines that are gone
    workers: int
    max_restarts: int
    min_workers: int
    wait_for_hosts: float  # seconds, for machines without which fewer are left


class Outcome(NamedTuple):
    """How an attempt ended."""

    status: int
    rank: int | None  # of the worker that failed first, if that is known
    is_mistake: bool = False  # for a person to mend: the same would come again


class Restarts:
    """The places of a job's workers, from one attempt to the next.

    Args:
      options: where, how many, how often.
      workdir: where the job saves; None if that is not known.
      say: tells the user a line.

    Raises:
      UserError: a host cannot be used.
    """

    def __init__(self, options: Options, workdir: str | None, say: Callable[[str], None]):
        self.hosts = machines.take(options.hosts, options.workers)  # of the next attempt
        self.seen = machines.look(self.hosts)
        if problems := machines.problems(self.seen):
            raise UserError("; ".join(problems.values()))
        self._options, self._workdir, self._say = options, workdir, say
        self._all = options.hosts  # without the places that are left out
        self._before, self._saved = Outcome(0, None), newest(workdir)
        self._count = self._in_vain = 0

    def follow(self, outcome: Outcome) -> bool:
        """Whether the job is started again after an attempt that failed; it is said with whom."""
        if self._count == self._options.max_restarts:
            return False
        self._count += 1
        saved = newest(self._workdir)
        # Where the folder cannot be looked at, nobody knows of anything new.
        has_moved = saved is not None and saved != self._saved
        self._saved = saved or self._saved
        self._pause(outcome, has_moved)
        self._look()
        self._leave_out(outcome, has_moved)
        self._wait()
        hosts = machines.take(self._answering(), self._options.workers)
        count = sum(host.slots for host in hosts)
        if count < self._options.min_workers:
            self._say(f"no restart: {count} worker(s) are left, --min_workers={self._options.min_workers}")
            return False
        # On other places a rank is another worker's.
        self._before = outcome if hosts == self.hosts else Outcome(0, None)
        self.hosts = hosts
        told = f"restart {self._count} of {self._options.max_restarts}, with {count} worker(s)"
        self._say(f"{told}, from {self._saved or 'the start'}")
        return True

    def _pause(self, outcome: Outcome, has_moved: bool) -> None:
        if has_moved:
            self._in_vain = 0
        elif outcome.rank is None:
            seconds = min(_PAUSE_SECONDS * 2**self._in_vain, _LONGEST_PAUSE_SECONDS)
            self._in_vain += 1
            self._say(f"waiting {seconds:g} s, as nothing was saved since the last start")
            time.sleep(seconds)

    def _look(self) -> None:
        self.seen = machines.look(self._all)
        for problem in machines.problems(self.seen).values():
            self._say(problem)

    def _wait(self) -> None:
        """Has some patience with machines that do not answer, if too few workers are left without them."""
        patience = self._options.wait_for_hosts
        end = time.monotonic() + patience
        if patience and self._lacks_workers():
            names = ", ".join(machines.problems(self.seen))
            self._say(f"waiting for {names}, up to {patience:g} s (--wait_for_hosts)")
        while self._lacks_workers() and time.monotonic() < end:
            time.sleep(_ASK_SECONDS)
            self.seen = machines.look(self._all)

    def _answering(self) -> tuple[Host, ...]:
        return tuple(host for host in self._all if not self.seen[host.name].problem)

    def _lacks_workers(self) -> bool:
        hosts = self._answering()
        return len(hosts) < len(self._all) and sum(host.slots for host in hosts) < self._options.min_workers

    def _leave_out(self, outcome: Outcome, has_moved: bool) -> None:
        """A worker that fails again and again, unless it is its machine that is gone."""
        if outcome.rank is None or outcome.rank != self._before.rank or has_moved:
            return
        name, local_rank = machines.of_rank(self.hosts, outcome.rank)
        if not self.seen[name].problem:
            self._all = machines.without_one(self._all, name, local_rank)


def newest(workdir: str | None) -> str | None:
    """The name of the newest checkpoint, to see whether a job has come further."""
    try:
        names = os.listdir(os.path.join(workdir or "", CHECKPOINTS_NAME)) if workdir else []
    except OSError:
        return None
    return max((name.partition(".")[0] for name in names if name.startswith(CHECKPOINT_PREFIX)), default=None)
