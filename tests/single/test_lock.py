"""A workdir belongs to one process at a time, and to nobody once that is gone."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import threading

import pytest

from instcls_tf.distributed import job
from instcls_tf.errors import MachineError, UserError
from instcls_tf.run import lock
from instcls_tf.run.lock import WorkdirLock

_spawn = multiprocessing.get_context("spawn")


def _hold(workdir, held, enough, host=None) -> None:
    if host is not None:
        socket.gethostname = lambda: host
    lock = WorkdirLock(workdir)
    held.set()
    enough.wait(60)
    lock.release()


@pytest.fixture
def owner(tmp_path, request):
    """Another process, of another host if a test names one, with the lock of `tmp_path`; what tells it to stop."""
    held, enough = _spawn.Event(), _spawn.Event()
    host = getattr(request, "param", None)
    process = _spawn.Process(target=_hold, args=(str(tmp_path), held, enough, host))
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


@pytest.mark.parametrize("owner", ["gone"], indirect=True)
def test_under_the_launcher_another_machines_lock_is_waited_for(tmp_path, monkeypatch, capsys, owner):
    """A file server holds it for a while when that machine is gone, and the job has been started again by then."""
    process, enough = owner
    with pytest.raises(UserError, match=rf"is in use by process {process.pid} on gone, .*: wait until") as refusal:
        WorkdirLock(str(tmp_path))
    assert type(refusal.value) is UserError, "without the launcher nobody would start it again"
    monkeypatch.setenv(job.FOLDER, str(tmp_path))
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_PATIENCE", 0.5)
        with pytest.raises(MachineError, match=rf"is in use by process {process.pid} on gone, .*, still after 0.5 s: "):
            WorkdirLock(str(tmp_path))
    capsys.readouterr()
    threading.Timer(3.0, enough.set).start()
    taken = WorkdirLock(str(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"is in use by process {process.pid} on gone, " in line and ": waiting for up to 120 s, " in line
    taken.release()


def test_under_the_launcher_a_process_of_this_machine_is_not_waited_for(tmp_path, monkeypatch, owner):
    monkeypatch.setenv(job.FOLDER, str(tmp_path))
    with pytest.raises(UserError, match="is in use by process ") as refusal:
        WorkdirLock(str(tmp_path))
    assert type(refusal.value) is UserError
