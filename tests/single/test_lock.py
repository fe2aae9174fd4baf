"""A workdir belongs to one process at a time, and to nobody once that is gone."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal

import pytest

from instcls_tf.errors import UserError
from instcls_tf.run.lock import WorkdirLock

_spawn = multiprocessing.get_context("spawn")


def _hold(workdir, held, enough) -> None:
    lock = WorkdirLock(workdir)
    held.set()
    enough.wait(60)
    lock.release()


@pytest.fixture
def owner(tmp_path):
    """Another process, which holds the lock of `tmp_path`; and what tells it to stop."""
    held, enough = _spawn.Event(), _spawn.Event()
    process = _spawn.Process(target=_hold, args=(str(tmp_path), held, enough))
    process.start()
    assert held.wait(60)
    yield process, enough
    process.kill()
    process.join()


def test_the_second_is_refused_and_told_by_whom(tmp_path, owner):
    process, enough = owner
    with pytest.raises(UserError) as refusal:
        WorkdirLock(str(tmp_path / ".." / tmp_path.name))
    assert re.fullmatch(
        rf"--workdir=\S+: is in use by process {process.pid} on {re.escape(os.uname().nodename)}, since [-\d:+ ]+:"
        r" wait until that run is done, end it, or give another folder",
        str(refusal.value),
    )
    enough.set()
    process.join(60)
    assert list(tmp_path.iterdir()) == []
    WorkdirLock(str(tmp_path)).release()


def test_it_dies_with_its_owner(tmp_path, owner):
    process, _ = owner
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    WorkdirLock(str(tmp_path)).release()


def test_a_process_may_take_it_twice(tmp_path):
    first, second = WorkdirLock(str(tmp_path)), WorkdirLock(str(tmp_path))
    second.release()
    first.release()
    assert list(tmp_path.iterdir()) == []
