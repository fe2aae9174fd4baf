"""Rank and size from the environment of each launcher."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

from flags import claims, sweep
from instcls_tf import files
from instcls_tf.distributed import gpus, job, launch, launcher
from instcls_tf.distributed.forwarded_signals import ForwardedSignals
from instcls_tf.distributed.hosts import Host
from instcls_tf.distributed.restarts import Outcome
from instcls_tf.errors import UserError
from tests.commands import run_command, script

PAIRS = {
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE"),
    "open_mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpich": ("PMI_RANK", "PMI_SIZE"),
    "srun": ("PMIX_RANK", "SLURM_NTASKS"),
}

DEAD = 2**22 + 1  # above the largest process id
# The namespace of this process' ids.
PROCESSES = os.stat("/proc/self/ns/pid").st_ino


@pytest.fixture(autouse=True)
def shell(monkeypatch):
    """The environment of a process started by hand, and how to change it."""
    for name in (name for pair in PAIRS.values() for name in pair):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_started_by_hand():
    assert launcher.launched_rank_and_size() is None


@pytest.mark.parametrize("kind", PAIRS)
def test_started_by_a_launcher(shell, kind):
    rank, size = PAIRS[kind]
    shell.setenv(rank, "2")
    shell.setenv(size, "13")
    assert launcher.launched_rank_and_size() == (2, 13)


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "PMIX_RANK", "PMI_RANK"])
def test_half_a_pair_is_no_launcher(shell, name):
    shell.setenv(name, "1")  # as SLURM_NTASKS is in a batch script that starts the command without srun
    assert launcher.launched_rank_and_size() is None


def test_horovodrun_inside_a_slurm_job_wins(shell):
    for name, value in (("PMIX_RANK", "0"), ("SLURM_NTASKS", "1"), ("HOROVOD_RANK", "3"), ("HOROVOD_SIZE", "4")):
        shell.setenv(name, value)
    assert launcher.launched_rank_and_size() == (3, 4)


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        ("plan --num_instances=100", ", with --workers=2"),
        ("plan --scaling --images_per_second=1 --gigaflops=1", ", with --scaling_workers=2"),
        ("benchmark input", ""),
        ("benchmark gallery", ""),
        ("benchmark memory", ", with --workers=2"),
        ("benchmark scaling", ", with --workers=2"),
        ("benchmark duplicates --workdir=run --dataset=folder:photos", ""),
        ("dynamics --workdir=run", ""),
        ("sweep --spec=sweep.toml", ""),
        ("reproduce --claim=table4_prior --scale=digits", ""),
        ("export --workdir=run --output=exported", ""),
        ("check_export exported", ""),
        ("export_matrix --environments=environments", ""),
        ("prepare --dataset=digits --output=records", ""),
        ("show_views --dataset=digits --output=views.png", ""),
        ("checkpoint inspect run", ""),
    ],
)
def test_what_one_process_does(shell, command, instead):
    """A launcher of several is refused before anything else is; one of a single worker is none."""
    shell.setenv("OMPI_COMM_WORLD_RANK", "0")
    shell.setenv("OMPI_COMM_WORLD_SIZE", "2")
    name, *words = command.split()
    done = run_command(script(name, *words))
    what = f"{name} {words[0]}" if name == "benchmark" else name
    sentence = f"error: {what}: is done by one process, not by 2: start it without a launcher{instead}\n"
    assert (done.status, done.stderr, done.stdout) == (2, sentence, "")


@pytest.mark.parametrize(("size", "refused"), [(None, False), ("1", False), ("2", True)])
def test_several_workers_are_refused(shell, size, refused):
    if size:
        shell.setenv("PMI_RANK", "0")
        shell.setenv("PMI_SIZE", size)
    with pytest.raises(UserError) if refused else contextlib.nullcontext():
        launcher.refuse_several("plan", "workers")


@pytest.mark.parametrize(("name", "begin"), [("sweep", sweep.path_of_spec), ("reproduce", claims.answer)])
def test_what_starts_runs_of_its_own_is_no_worker(shell, name, begin):
    """Not even the only one of a job: its runs would be killed with it, before they have saved."""
    shell.setenv(job.FOLDER, "/tmp/instcls-job-host-1-x")
    with pytest.raises(UserError) as refusal:
        begin()
    sentence = f"{name}: starts runs of its own, which scripts.launch would kill: start it without a launcher"
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("said", "status", "outcome"),
    [
        ({"is_mistake": True}, 2, (2, None, True)),
        ({"is_mistake": True}, 1, (1, None, True)),  # a run that diverges
        ({}, 1, (1, None, False)),
        ({"trace": "Traceback"}, 1, (1, 1, False)),
    ],
    ids=["mistake", "diverged", "machine", "unforeseen"],
)
def test_a_worker_says_whether_the_same_would_come_again(shell, tmp_path, said, status, outcome):
    """Not whether there is a traceback: a bit that flipped is told in a sentence, too."""
    (tmp_path / job.MARK).touch()
    for name, value in ((job.FOLDER, tmp_path), ("OMPI_COMM_WORLD_RANK", 1), ("OMPI_COMM_WORLD_SIZE", 2)):
        shell.setenv(name, str(value))
    assert job.record_error("step 4: went wrong", **said)
    attempt = launch._Attempt((Host("localhost", 2),), [], str(tmp_path), ForwardedSignals(True))
    assert attempt._judge(status) == Outcome(*outcome)


@pytest.mark.parametrize(("left_out", "told"), [((), None), ((1, 0), "1+0,1+0,")])
def test_workers_are_told_which_gpus_failed_others(shell, tmp_path, left_out, told):
    begun = []
    shell.setattr(subprocess, "Popen", lambda command, env, **_: begun.append((command, env)))
    hosts = (Host("a", 2, left_out), Host("b", 1))
    launch._Attempt(hosts, ["true"], str(tmp_path), ForwardedSignals(True))._start()
    ((command, environment),) = begun
    assert environment.get(gpus.UNUSED) == told and (gpus.UNUSED in command) == (told is not None)


@pytest.mark.parametrize("is_resumable", [True, False])
def test_mpirun_does_not_begin_with_what_ends_it_ignored(is_resumable):
    """As what a script has put into the background does: a Ctrl-C of others is not for it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        begun = subprocess.run(
            [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT))"],
            preexec_fn=ForwardedSignals(is_resumable).become_mpirun, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert "default_int_handler" in begun.stdout


def test_only_own_folders_of_dead_launchers_are_removed(tmp_path, monkeypatch):
    """Not those of a machine whose name begins as this one's does, or of a container with this one's name."""
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu")
    monkeypatch.setattr(files, "machine", lambda: f"gpu-{PROCESSES}")
    gone = tmp_path / f"instcls-job-gpu-{PROCESSES}-{DEAD}-ab_c1"
    of_others = [f"{machine}-{DEAD}" for machine in ("gpu", f"gpu-{PROCESSES + 1}", f"gpu-2-{PROCESSES}")]
    kept = [*(f"instcls-job-{other}-abc1" for other in (*of_others, f"gpu-{PROCESSES}-{os.getpid()}")), "mine"]
    for folder in (gone, *(tmp_path / name for name in kept)):
        folder.mkdir()
    launch._remove_left(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize(("container", "is_orphaned"), [(PROCESSES, True), (PROCESSES + 1, False)])
def test_a_launcher_in_another_container_is_not_looked_for(shell, container, is_orphaned):
    """Its number is one of that container's processes, also where both have the name of their host."""
    shell.setenv(job.LAUNCHER, f"{DEAD}@{socket.gethostname()}-{container}")
    assert job.is_orphaned() is is_orphaned


@pytest.mark.parametrize("name", ["gettempdir", "mkdtemp"])
def test_no_room_for_the_folder_of_a_job(shell, name):
    def fail(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    shell.setenv("TMPDIR", "/scratch")
    shell.setattr(tempfile, name, fail)
    sentence = (
        r"^TMPDIR=/scratch: the launcher cannot make a folder of its own there \(No space left on device\), wanted"
    )
    with pytest.raises(UserError, match=sentence), launch._folder((Host("localhost", 2),), None):
        pass
