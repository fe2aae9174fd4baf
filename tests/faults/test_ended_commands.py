"""Commands under the launcher that save nothing and are ended: by a signal, or because a worker has failed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.commands import ROOT, TIMEOUT
from tests.faults.jobs import last_line, launcher, running

# Workers that write into a folder each, until `{then}`.
WRITING = """
import os, sys, time
from flags import command
from instcls_tf import files
folder, rank = sys.argv.pop(), os.environ["OMPI_COMM_WORLD_RANK"]
def main():
    with files.whole_folder(os.path.join(folder, rank)):
        open(folder + rank, "w").close()
        try:
            {then}
        finally:
            time.sleep(0.2 * int(rank))  # what it has to remove takes its time, and the other is gone
command.run(main, "Writes a folder.")
"""
WAIT = "time.sleep(600)"
FAIL = """while not os.path.exists(folder + "0"): time.sleep(0.01)
            if rank == "1": raise RuntimeError("the disk of this worker is on fire")
            time.sleep(600)"""


def package(folder: Path, name: str, program: str) -> dict[str, str]:
    """The environment in which there is a command `package.NAME`."""
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / f"{name}.py").write_text(program)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def writing(folder: Path, then: str) -> dict[str, str]:
    """The environment in which there is a command `package.writing`."""
    return package(folder, "writing", WRITING.format(then=then))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_of_a_command_that_cannot_go_on_leave_nothing(tmp_path, number):
    """SIGTERM or Ctrl-C while workers write into folders: status 143 or 130, one line, and the folders are gone."""
    folder = tmp_path / "written"
    with running(launcher(2, "package.writing", folder), **writing(tmp_path, WAIT)) as job:
        job.wait_until(lambda: all((tmp_path / f"written{rank}").exists() for rank in (0, 1)))
        job.processes()
        job.process.send_signal(number)
        finished = job.finish()
    assert (finished.status, finished.output) == (128 + number, f"{number.name}: ended before it was done\n")
    assert list(folder.iterdir()) == []


def test_those_that_a_failed_worker_has_left_say_nothing(tmp_path):
    """A worker raises, and mpirun ends the other by a signal that nobody has sent: status 1, one cause."""
    folder = tmp_path / "written"
    with running(launcher(2, "package.writing", folder), **writing(tmp_path, FAIL)) as job:
        finished = job.finish()
    assert finished.status == 1 and "SIG" not in finished.output
    assert last_line(finished.stderr).endswith(": RuntimeError: the disk of this worker is on fire")
    assert list(folder.iterdir()) == []


def test_mpirun_is_ended_before_it_has_begun(tmp_path):
    """SIGTERM right after mpirun's start, Ctrl-C being ignored as in the background of a script: status 143."""
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *launcher(2, "package.writing", tmp_path / "written")]
    with running(ignoring, **writing(tmp_path, WAIT)) as job:
        end = time.monotonic() + TIMEOUT
        while not job.named("orterun"):  # at once, unlike `wait_until`
            assert job.process.poll() is None and time.monotonic() < end, job.read()
        job.process.send_signal(signal.SIGTERM)
        finished = job.finish()
    assert finished.status == 128 + signal.SIGTERM, finished.output


def test_a_command_of_others_is_ended(tmp_path):
    """SIGTERM while a command runs that knows nothing of signals: its workers are ended, status 143."""
    program = f"open({str(tmp_path / 'on')!r}, 'w'); import time; time.sleep(600)"
    with running(launcher(2, "package.sleeping"), **package(tmp_path, "sleeping", program)) as job:
        job.wait_until((tmp_path / "on").exists)
        job.processes()
        job.process.send_signal(signal.SIGTERM)
        finished = job.finish()
    assert (finished.status, finished.output) == (128 + signal.SIGTERM, "SIGTERM: ended before it was done\n")
