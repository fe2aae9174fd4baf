"""The launcher and other hosts: those that cannot be used, that have other cores, that come back late."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from instcls_tf.distributed import cores, hosts, job
from tests.commands import run_command, user_environment
from tests.faults.jobs import attempts, launcher, running, saved, standin

LONG = "--steps=1000"


def fake_ssh(folder: Path, script: str) -> str:
    """PATH with an ssh that does as it is told here."""
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f"#!/bin/sh\n{script}\n")
    ssh.chmod(0o755)
    return f"{ssh.parent}{os.pathsep}{user_environment()['PATH']}"


SSH_SAYS = {
    "refused": ("ssh: connect to host b port 22: Connection refused", "runs no ssh server that answers"),
    "unknown": ("ssh: Could not resolve hostname b: Name or service not known", "is no known name of a machine"),
    "no_key": (
        "u@b: Permission denied (publickey).",
        "accepts no key of this user: ssh-copy-id b, so that ssh asks for no password",
    ),
    "host_key": (
        "Host key verification failed.",
        "has a key that this user has not accepted: ssh b once by hand",
    ),
    "no_environment": ("", f"has no {sys.executable}, wanted the same environment at the same path on all hosts"),
}


@pytest.mark.parametrize(("said", "problem"), SSH_SAYS.values(), ids=SSH_SAYS)
def test_a_host_that_cannot_be_used(tmp_path, monkeypatch, said, problem):
    """A host refuses, is unknown, accepts no key, has another key, lacks the environment: status 2, one sentence,
    nothing begun.
    """
    monkeypatch.setenv("PATH", fake_ssh(tmp_path, f"echo '{said}' >&2; exit {255 if said else 1}"))
    with running(standin(tmp_path / "run", options=("-H", "localhost:1,b:1")), PATH=os.environ["PATH"]) as job:
        finished = job.finish()
    assert (finished.status, finished.stderr) == (2, f"error: host b: {problem}\n")
    assert not (tmp_path / "run").exists()


def test_an_address_where_nobody_answers():
    """An address without an ssh server, for real: status 2, one sentence."""
    finished = run_command(launcher(2, "-H", "localhost:1,127.0.0.9:1", "pretrain"))
    assert finished.status == 2 and finished.stderr.startswith("error: host 127.0.0.9: ")
    assert finished.stderr.count("\n") == 1


def test_a_host_that_lets_one_in_and_hangs(tmp_path, monkeypatch):
    """A login that never gets to its command, as with a home on a file server that is gone: it does not answer."""
    monkeypatch.setenv("PATH", fake_ssh(tmp_path, "exec sleep 60"))
    monkeypatch.setattr(hosts, "_ANSWER_SECONDS", 0.5)
    assert hosts.problems(hosts.look([hosts.Host("b", 1)])) == {"b": "host b: does not answer"}


def test_arguments_of_ssh_that_users_give_to_open_mpi(tmp_path, monkeypatch):
    """A port, a key: the look before the job uses them as well."""
    monkeypatch.setenv("PATH", fake_ssh(tmp_path, f'echo "$@" > {tmp_path}/asked; echo 2'))
    monkeypatch.setenv("OMPI_MCA_plm_rsh_args", "-p 2222 -i key")
    assert hosts.problems(hosts.look([hosts.Host("b", 1)])) == {}
    assert " -p 2222 -i key b " in (tmp_path / "asked").read_text()


def test_a_folder_of_the_job_that_is_not_shared(tmp_path, monkeypatch):
    """A worker elsewhere without a workdir: nobody would read its error in a folder of its own machine, so it tells."""
    folder = tmp_path / "job"
    monkeypatch.setenv(job.FOLDER, str(folder))
    for there in (False, True):
        if there:
            folder.mkdir()
        assert job.folder() is None
        assert not job.record_error("wrong")
    (folder / job.MARK).touch()
    assert job.folder() == str(folder) and job.record_error("wrong")
    assert [error.sentence for error in job.read_errors(str(folder))] == ["wrong"]


def test_a_folder_of_the_job_that_cannot_be_made(tmp_path, monkeypatch):
    """A workdir of workers elsewhere in which the launcher may not write: status 2, one sentence."""
    monkeypatch.setenv("PATH", fake_ssh(tmp_path, "echo 2"))
    words = standin(Path("/proc/runs/a"), options=("-H", "localhost:1,elsewhere:1"))
    with running(words, PATH=os.environ["PATH"], INSTCLS_THREADS="1") as job:
        finished = job.finish()
    assert finished.status == 2
    reason = "the launcher cannot make a folder of its own there (No such file or directory)"
    wanted = "wanted one with room that this user may write to"
    assert finished.stderr == f"error: --workdir=/proc/runs/a: {reason}, {wanted}\n"


# An ssh that leads to this machine.
THE_SAME_MACHINE = (
    'while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done; shift\nexec env -i HOME=$HOME %s sh -c "$*"'
)


def test_hosts_with_other_cores(tmp_path, monkeypatch):
    """A host with fewer cores per worker: all workers compute with the smallest number of threads, which is said."""
    own = len(os.sched_getaffinity(0))
    if own < 2:
        pytest.skip("one core alone: no host can have fewer")
    monkeypatch.setenv("PATH", fake_ssh(tmp_path, THE_SAME_MACHINE % f"taskset -c {min(os.sched_getaffinity(0))}"))
    words = standin(tmp_path / "run", LONG, options=("-H", "localhost:1,elsewhere:1"))
    with running(words, PATH=os.environ["PATH"]) as job:
        job.wait_until(lambda: len(saved(tmp_path / "run")) > 1)
        given = [job.worker(rank).environ()[cores.THREADS] for rank in (0, 1)]
        job.started.send_signal(signal.SIGTERM)
        finished = job.finish()
    assert given == ["1", "1"]
    told = f"(localhost {own}, elsewhere 1): all compute with 1 thread(s), as on elsewhere"
    assert finished.stderr.splitlines()[0] == f"hosts differ in cores per worker {told}"


def test_workers_on_another_host(tmp_path, monkeypatch):
    """A worker elsewhere, over ssh: it finds the environment, and its errors and stamps are read."""
    monkeypatch.setenv("PATH", fake_ssh(tmp_path, THE_SAME_MACHINE % ""))
    run = tmp_path / "run"
    with running(standin(run, options=("-H", "localhost:1,elsewhere:1")), PATH=os.environ["PATH"]) as job:
        finished = job.finish()
    assert finished.status == 0, finished.output
    assert attempts(run) == ["2 0"] and saved(run)[-1] == 10


def test_in_a_job_of_slurm(tmp_path):
    """Within `salloc` or `srun --pty`, of one task: the workers are as many as -np says, and no srun is called."""
    slurm = {"JOBID": "1", "NODELIST": socket.gethostname(), "NNODES": "1", "TASKS_PER_NODE": "1"}
    with running(standin(tmp_path), **{f"SLURM_{name}": value for name, value in slurm.items()}) as job:
        finished = job.finish()
    assert finished.status == 0, finished.output
    assert attempts(tmp_path) == ["2 0"]


def test_a_restart_waits_for_a_host(tmp_path, monkeypatch):
    """A machine does not answer after a failure, and too few workers are left without it: the restart waits until it
    does.
    """
    gone, run = tmp_path / "gone", tmp_path / "run"
    refuses = f"[ ! -e {gone} ] || {{ echo 'ssh: connect to host elsewhere port 22: No route to host' >&2; exit 255; }}"
    monkeypatch.setenv("PATH", fake_ssh(tmp_path, f"{refuses}\n{THE_SAME_MACHINE % ''}"))
    options = ("-H", "localhost:1,elsewhere:1", "--max_restarts=1")
    with running(standin(run, "--steps=60", options=options), PATH=os.environ["PATH"]) as job:
        job.wait_until(lambda: len(saved(run)) > 1)
        gone.touch()
        job.worker(1).kill()
        job.wait_until(lambda: "waiting for elsewhere, up to 600 s (--wait_for_hosts)" in job.read().stderr)
        gone.unlink()
        finished = job.finish()
    assert finished.status == 0, finished.output
    assert "host elsewhere: cannot be reached\n" in finished.stderr
    assert [attempt.split()[0] for attempt in attempts(run)] == ["2", "2"] and saved(run)[-1] == 60
