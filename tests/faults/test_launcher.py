"""The launcher: whatever dies, nothing is left behind, and the last line says why.

Most cases run a stand-in for pretraining without TensorFlow, whose checkpoints are empty files: what is asserted is
what the launcher does. `test_signals` has the same with real runs.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import psutil
import pytest

from tests.commands import ROOT, run_command, user_environment
from tests.faults import conftest
from tests.faults.jobs import attempts, hurt, job_folders, last_line, launcher, running, saved, standin, waits_for
from tests.faults.preloaded.server import STANDS_FOR_A_WORKER

LONG = "--steps=1000"


def test_lines_arrive_as_they_were_written(tmp_path):
    """A run that goes well: the workers' own lines without marks, standard output by itself, no folder left behind."""
    with running(standin(tmp_path)) as job:
        finished = job.finish()
    assert (finished.status, finished.stdout) == (0, "rank 0 answers\n")
    said = finished.stderr.splitlines()
    assert said[0] == "2 worker(s) from step 0" and said[-1] == "done"
    assert all(line.startswith("pretraining: step ") for line in said[1:-1])
    assert not [name for name in job_folders() if f"-{job.process.pid}-" in name]


def test_a_worker_is_killed(tmp_path):
    """SIGKILL of a worker: status 1, the last line names it and the signal; the next run goes on from there."""
    with running(standin(tmp_path, LONG)) as job:
        hurt(job, tmp_path, lambda: job.worker(1))
        finished = job.finish()
    assert finished.status == 1
    who, why = f"worker 1 (on {socket.gethostname()})", "by somebody, or by the system because memory ran out"
    assert last_line(finished.stderr) == f"error: {who} was ended by SIGKILL: {why}"
    kept = saved(tmp_path)[-1]
    assert run_command(standin(tmp_path, f"--steps={kept + 2}")).status == 0
    assert attempts(tmp_path) == ["2 0", f"2 {kept}"]


def test_the_earliest_error_is_the_cause(tmp_path):
    """A worker raises, and the other fails in Horovod for it: status 1, one traceback, and the last line is the
    first's.
    """
    finished = run_command(standin(tmp_path, "--faults=raise@1:3,collective@0:3"))
    assert finished.status == 1
    assert last_line(finished.stderr) == (
        f"error: worker 1 on {socket.gethostname()}: RuntimeError: the disk of this worker is on fire"
    )
    assert finished.stderr.count("Traceback") == 1 and "HorovodError" not in finished.stderr


def test_a_mistake_is_told_once(tmp_path):
    """A user's mistake that all workers see: status 2, one sentence, no restart."""
    sentence = "--dataset=x: this worker has no such images"
    finished = run_command(standin(tmp_path, "--faults=mistake@0:1,mistake@1:1", options=("--max_restarts=3",)))
    assert finished.status == 2
    assert finished.stderr.splitlines()[1:] == [f"error: {sentence}"]
    assert attempts(tmp_path) == ["2 0"], "a mistake is no reason to start again"


def test_a_worker_that_ends_without_a_word(tmp_path):
    """A worker exits with a status of its own: status 1, the last line names both."""
    finished = run_command(standin(tmp_path, "--faults=die@1:3"))
    assert finished.status == 1
    assert last_line(finished.stderr) == "error: worker 1 ended with status 9 and said nothing of why"


@pytest.mark.parametrize("victims", [("launcher",), ("mpirun",), ("launcher", "mpirun")], ids="+".join)
def test_no_orphans(tmp_path, victims):
    """SIGKILL of the launcher, of mpirun, of both: all gone in ten seconds, and the next run goes on from the
    checkpoint.
    """
    with running(standin(tmp_path, LONG)) as job:
        named = {"launcher": lambda: job.started, "mpirun": job.mpirun}
        hurt(job, tmp_path, *(named[victim] for victim in victims))
        finished = job.finish()
    assert finished.status == (-signal.SIGKILL if "launcher" in victims else 1)
    if victims == ("mpirun",):
        assert last_line(finished.stderr) == "error: mpirun was ended by SIGKILL"
    kept = saved(tmp_path)[-1]
    assert run_command(standin(tmp_path, f"--steps={kept}")).status == 0
    assert attempts(tmp_path) == ["2 0", f"2 {kept}"]
    assert not [name for name in job_folders() if f"-{job.process.pid}-" in name], "the next launcher clears up"


def test_what_a_worker_has_started_ends_with_it(tmp_path):
    """A worker has started a process in a session of its own, and another is killed: that process is ended, too."""
    with running(standin(tmp_path, LONG, "--faults=child@0:1")) as job:
        job.wait_until(lambda: job.named("sleep") != [])
        hurt(job, tmp_path, lambda: job.worker(1))
        assert job.finish().status == 1


def test_ctrl_c(tmp_path):
    """Ctrl-C: the workers save that step, status 75; the next run goes on from there."""
    with running(standin(tmp_path, LONG)) as job:
        hurt(job, tmp_path, lambda: job.started, how=signal.SIGINT)
        finished = job.finish()
    assert finished.status == 75
    kept = saved(tmp_path)[-1]
    assert finished.stderr.splitlines()[1:] == [
        "Ctrl-C: the workers save and stop; once more ends them at once",
        f"SIGUSR1: saved at step {kept}",
    ]
    assert run_command(standin(tmp_path, f"--steps={kept + 1}")).status == 0
    assert attempts(tmp_path) == ["2 0", f"2 {kept}"]


@pytest.mark.parametrize("victims", [("mpirun",), ("launcher", "mpirun")], ids="+".join)
def test_mpirun_is_asked_to_stop(tmp_path, victims):
    """SIGTERM to mpirun, or to it and the launcher as of `systemctl stop`, in a long step: it is saved, status 75."""
    with running(standin(tmp_path, LONG, "--step_seconds=1.5")) as job:
        job.wait_until(lambda: saved(tmp_path) != [])
        job.processes()
        for victim in [{"launcher": job.started, "mpirun": job.mpirun()}[name] for name in victims]:
            victim.send_signal(signal.SIGTERM)
        finished = job.finish()
    kept = saved(tmp_path)[-1]
    assert finished.status == 75 and kept > 2
    assert last_line(finished.stderr) == f"SIGUSR1: saved at step {kept}"


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    """Ctrl-C twice, while a worker is stopped: all are ended, status 75."""
    with running(standin(tmp_path, LONG)) as job:
        hurt(job, tmp_path, lambda: job.worker(1), how=signal.SIGSTOP)
        # A worker 0 that is a step behind could save that step by itself, and leave nothing to end.
        job.wait_until(lambda: waits_for(job.worker(1), waiting=job.worker(0)))
        job.process.send_signal(signal.SIGINT)
        job.wait_until(lambda: "Ctrl-C" in job.read().stderr)
        job.process.send_signal(signal.SIGINT)
        finished = job.finish()
    assert finished.status == 75
    assert last_line(finished.stderr) == "SIGINT: ended at once; the same command goes on from its last checkpoint"


def test_a_restart_goes_on_from_the_last_checkpoint(tmp_path):
    """A worker is killed under `--max_restarts`: the job goes on with all workers from the last checkpoint."""
    finished = run_command(standin(tmp_path, "--faults=SIGKILL@1:5", "--once", options=("--max_restarts=2",)))
    assert finished.status == 0
    assert "restart 1 of 2, with 2 worker(s), from ckpt-00000004" in finished.stderr.splitlines()
    assert attempts(tmp_path) == ["2 0", "2 4"]
    assert saved(tmp_path)[-1] == 10


def test_a_fault_of_a_machine_is_no_mistake(tmp_path):
    """All workers say in a sentence that a file system or a bit of memory failed: a restart goes on from there."""
    faults = "--faults=machine@0:5,machine@1:5"
    finished = run_command(standin(tmp_path, faults, "--once", options=("--max_restarts=1",)))
    assert finished.status == 0
    assert attempts(tmp_path) == ["2 0", "2 4"]
    said = finished.stderr.splitlines()
    assert [line for line in said if line.startswith("error: ")] == ["error: step 4: the file system has failed"]
    finished = run_command(standin(tmp_path / "other", faults))
    assert finished.status == 1 and last_line(finished.stderr) == "error: step 4: the file system has failed"


def test_a_worker_that_fails_again_and_again_is_left_out(tmp_path):
    """A worker is killed twice without a checkpoint between, under `--min_workers`: the third attempt goes on without
    it.
    """
    options = ("--max_restarts=5", "--min_workers=1")
    finished = run_command(standin(tmp_path, "--faults=SIGKILL@1:4", options=options))
    assert finished.status == 0
    assert attempts(tmp_path) == ["2 0", "2 4", "1 4"]
    assert "restart 2 of 5, with 1 worker(s), from ckpt-00000004" in finished.stderr.splitlines()


def test_fewer_workers_than_wanted_are_no_restart(tmp_path):
    """The same without `--min_workers`: status 1, and the last line says how many are left."""
    finished = run_command(standin(tmp_path, "--faults=SIGKILL@1:4", options=("--max_restarts=5",)))
    assert finished.status == 1
    assert attempts(tmp_path) == ["2 0", "2 4"]
    assert last_line(finished.stderr) == "no restart: 1 worker(s) are left, --min_workers=2"


def test_pretraining_goes_on_with_the_worker_that_is_left(tmp_path, server, past):
    """Pretraining, worker 1 killed in step 5 again and again: the third attempt goes on from step 3 without it, to the
    end of the run that one worker made.
    """
    run = tmp_path / "run"
    words = launcher(
        2, "--max_restarts=2", "--min_workers=1", STANDS_FOR_A_WORKER, *conftest.flags_of(run, past.photos)
    )
    with running(words, HURT="SIGKILL@1:training:5", **server.environment) as job:
        finished = job.finish()
    assert finished.status == 0, finished.output
    said = finished.stderr.splitlines()
    assert [line for line in said if line.startswith("restart ")] == [
        "restart 1 of 2, with 2 worker(s), from ckpt-00000003",
        "restart 2 of 2, with 1 worker(s), from ckpt-00000003",
    ]
    assert said.count(f"continuing {run} from step 3") == 2
    conftest.assert_equal_runs(run, past.whole)


def test_restarts_come_to_an_end(tmp_path):
    """More failures than `--max_restarts`: status 1, the last line is the last cause."""
    finished = run_command(standin(tmp_path, "--faults=SIGKILL@1:2,SIGKILL@1:4", options=("--max_restarts=1",)))
    assert finished.status == 1
    assert attempts(tmp_path) == ["2 0", "2 2"]
    assert "was ended by SIGKILL" in last_line(finished.stderr)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "-np is missing: give the number of workers, as in -np 2"),
        (["-np", "4", "-H", "a:1,b:2", "pretrain"], "-np=4: -H=a:1,b:2 has 3 place(s), wanted one for each worker"),
        (["-H", "a:1,a:2", "pretrain"], "-H=a:1,a:2: names a twice, wanted each host once, with all of its workers"),
        (["-H", "a:x", "pretrain"], "-H=a:x: 'a:x' is no host, wanted NAME:WORKERS with commas between them"),
        (["-np", "2", "--min_workers=3", "pretrain"], "--min_workers=3: must be 1 to the 2 workers"),
        (["-np", "2", "--wait_for_hosts=-1", "pretrain"], "--wait_for_hosts=-1.0: must be 0 or more seconds"),
        (["-np", "2", "tests.faults.nothing"], "tests.faults.nothing: no such module"),
    ],
    ids=["np", "places", "twice", "form", "min_workers", "wait", "module"],
)
def test_wrong_words(words, sentence):
    """Too few places for the workers, a host twice, and other wrong words: status 2, one sentence."""
    finished = run_command([sys.executable, "-m", "scripts.launch", *words])
    assert (finished.status, finished.stderr) == (2, f"error: {sentence}\n")


def test_a_bar_on_a_terminal(tmp_path):
    """Standard error is a terminal: a progress bar, drawn by the worker, without marks."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(
        standin(tmp_path), cwd=ROOT, env=user_environment(), stderr=writer, stdout=subprocess.PIPE
    )
    assert process.wait(60) == 0
    os.close(writer)
    shown = os.read(reader, 2**16).decode()
    assert re.search(r"\rpretraining: +\d+%\|.*\d+/10 ", shown)
    assert "<stderr>" not in shown and process.stdout.read() == b"rank 0 answers\n"


LISTENING = """
import ctypes, os, sys, time
library = ctypes.CDLL(os.path.join(sys.prefix, "lib", "libmpi.so.40"), mode=ctypes.RTLD_GLOBAL)
library.MPI_Init(None, None)
open(os.path.join(sys.argv[1], os.environ["OMPI_COMM_WORLD_RANK"]), "w").close()
while not os.path.exists(os.path.join(sys.argv[1], "done")):
    time.sleep(0.05)
library.MPI_Finalize()
"""


def test_nothing_listens_but_on_loopback(tmp_path):
    """A job on one machine, all its processes: whatever listens does so on 127.0.0.1 or ::1."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "listening.py").write_text(LISTENING)
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    with running(launcher(2, "package.listening", tmp_path), PYTHONPATH=path) as job:
        job.wait_until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
        time.sleep(0.2)
        members = [process for process in [job.started, *job.processes()] if process.is_running()]
        found = [
            connection.laddr.ip
            for process in members
            for connection in process.connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        (tmp_path / "done").touch()
        assert job.finish().status == 0
    assert len(members) >= 4 and found
    assert {ip for ip in found if ip != "127.0.0.1" and ip != "::1"} == set()
