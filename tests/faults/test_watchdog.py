"""The watchdog: a job that stands still is ended, and is told who is where; one that works for long is not."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from instcls_tf.distributed import watchdog
from tests.commands import TIMEOUT, run_command, under_launcher
from tests.end_to_end.runs import flags_of
from tests.faults.jobs import Job, hurt, launcher, running, saved, standin
from tests.full_disk import full_disk

LONG, LIMIT = "--steps=1000", "--stall_timeout=3"
STALLED = 70


def describe(job: Job, rank: int) -> str:
    return f"worker {rank} (pid {job.worker(rank).pid} on {socket.gethostname()})"


@pytest.mark.parametrize("victims", [(1,), (0,), (0, 1)], ids=["one", "rank_0", "all"])
def test_stopped_workers(tmp_path, victims):
    """SIGSTOP of worker 1, of rank 0, of all: status 70, the sentence names who is stopped; the next run goes on."""
    with running(standin(tmp_path, LONG, LIMIT)) as job:
        job.wait_until(lambda: len(saved(tmp_path)) > 1)
        names = [describe(job, rank) for rank in (0, 1)]
        hurt(job, tmp_path, *(lambda rank=rank: job.worker(rank) for rank in victims), how=signal.SIGSTOP)
        finished = job.finish()
    assert finished.status == STALLED
    (sentence,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: nothing has moved for \d+ s \(--stall_timeout=3\): worker", sentence)
    for victim in victims:
        assert f"{names[victim]} is stopped (SIGSTOP) in " in sentence
    kept = saved(tmp_path)[-1]
    assert run_command(standin(tmp_path, f"--steps={kept + 1}")).status == 0
    assert (tmp_path / "attempts").read_text().splitlines() == ["2 0", f"2 {kept}"]


def test_a_worker_is_stuck(tmp_path):
    """A worker loops for ever in Python: status 70, the sentence names worker, step and line; the next run goes on."""
    with running(standin(tmp_path, LIMIT, "--faults=hang@1:6")) as job:
        job.wait_until(lambda: saved(tmp_path) == [2, 4, 6])
        name = describe(job, 1)
        finished = job.finish()
    assert finished.status == STALLED
    last = finished.stderr.splitlines()[-1]
    where = r"pretraining, step 6 of 10, at tests/faults/standin/pretrain.py:\d+ \(stuck_here\)"
    assert re.search(rf"{re.escape(name)} is stuck in {where}", last), last
    assert saved(tmp_path) == [2, 4, 6]
    assert run_command(standin(tmp_path)).status == 0
    assert (tmp_path / "attempts").read_text().splitlines() == ["2 0", "2 6"]


def test_a_standstill_is_a_reason_to_start_again(tmp_path):
    """The same under `--max_restarts`: the job goes on from the last checkpoint."""
    words = standin(tmp_path, LIMIT, "--faults=hang@1:6", "--once", options=("--max_restarts=1",))
    finished = run_command(words)
    assert finished.status == 0
    assert (tmp_path / "attempts").read_text().splitlines() == ["2 0", "2 6"]


def test_rank_0_evaluates_for_longer_than_the_limit(tmp_path):
    """Rank 0 works for longer than the limit and stamps, while worker 1 waits for it: not killed."""
    finished = run_command(standin(tmp_path, LIMIT, "--faults=evaluate@0:3"))
    assert finished.status == 0, finished.stderr
    assert saved(tmp_path)[-1] == 10


def test_pretraining_without_our_launcher(tmp_path, monkeypatch):
    """Pretraining under horovodrun, worker 1 stuck in Python: one sentence with both workers; Horovod names the
    collective.
    """
    monkeypatch.setenv("HURT", "hang@1:training:2")
    module = [sys.executable, "-m", "tests.faults.hurt.pretrain"]
    workdir = tmp_path / "run"
    finished = run_command(under_launcher(2, [*module, *flags_of(workdir, stall_timeout=30)]), timeout=TIMEOUT)
    assert finished.status != 0
    (sentence,) = [line for rank in (0, 1) for line in finished.said_by(rank) if line.startswith("error: ")]
    assert sentence.startswith("error: nothing has moved for ") and "(--stall_timeout=30): worker 1 (pid " in sentence
    assert re.search(
        r"is stuck in waiting for images, step 2 of 8, at tests/faults/hurt/pretrain.py:\d+ \(hang\); worker 0",
        sentence,
    )
    assert "waits or computes in training, step 2 of 8, at instcls_tf/pretraining/stopping.py" in sentence
    assert any(line.startswith("1: [") for line in finished.said_by(0)), "Horovod names what misses rank 1"


@pytest.mark.parametrize("differs", ["name", "shape", "dtype"])
def test_workers_in_different_collectives(differs):
    """Two workers over MPI sum tensors of other names, shapes or types: the job ends, with who is where or with
    Horovod's text.
    """
    finished = run_command(launcher(2, "tests.faults.mismatch", f"--differs={differs}"))
    last = finished.stderr.splitlines()[-1]
    if differs == "name":
        assert finished.status == STALLED
        assert last.startswith("error: nothing has moved for ")
        for rank in (0, 1):
            assert re.search(rf"worker {rank} \(pid \d+ on \S+\) waits or computes in summing, step 3 of 10", last), (
                last
            )
    else:
        assert finished.status == 1
        expected = {  # in the order in which they came
            "shape": r"tensor shapes: One rank sent a tensor of shape \[[23]\], but another rank sent a tensor of shape"
            r" \[[23]\]\.",
            "dtype": r"data types: One rank had type float(32|64), but another rank had type float(32|64)\.",
        }[differs]
        assert re.fullmatch(rf"error: worker \d on \S+: \w+Error: Mismatched (ALLREDUCE )?{expected}", last), last


# -------------------------------------------------------------------------------------- the watch itself, by the second


def status(rank: int, ticks: int, stamps: int, **changes) -> watchdog.Status:
    values = {
        "rank": rank, "pid": 100 + rank, "host": "elsewhere", "ticks": ticks, "stamps": stamps, "phase": "training",
        "where": "a.py:1 (f)", "is_waiting": False, "limit": 10.0, "silence": 10.0, **changes,
    }  # fmt: skip
    return watchdog.Status(**values)


def sentence_after(folder: Path, seconds: int, statuses, step: float = 1.0, **options) -> str | None:
    """What a watch says when it has looked every `step` seconds at `statuses(second)`."""
    watch = watchdog.Watch(range(2), **options)
    for second in range(seconds + 1):
        for one in statuses(second):
            watchdog.publish(str(folder), one)
        watch.look(str(folder), now=second * step)
    return watch.sentence()


def test_one_that_moves_is_enough(tmp_path):
    def statuses(second):
        return [status(0, second, second), status(1, second, 0)]

    assert sentence_after(tmp_path, 60, statuses) is None


def test_none_moves(tmp_path):
    def statuses(second):
        return [status(0, second, 5, is_waiting=True), status(1, second, 5)]

    assert sentence_after(tmp_path, 10, statuses) is None
    assert sentence_after(tmp_path, 11, statuses) == (
        "nothing has moved for 11 s (--stall_timeout=10): worker 1 (pid 101 on elsewhere) is stuck in training, at"
        " a.py:1 (f); worker 0 (pid 100 on elsewhere) waits or computes in training, at a.py:1 (f)"
    )
    assert sentence_after(tmp_path, 60, statuses, judges_work=False) is None


def test_all_may_compute(tmp_path):
    def statuses(second):
        return [status(rank, second, 5, is_waiting=True) for rank in (0, 1)]

    assert sentence_after(tmp_path, 11, statuses) == (
        "nothing has moved for 11 s (--stall_timeout=10): "
        + "; ".join(f"worker {i} (pid 10{i} on elsewhere) waits or computes in training, at a.py:1 (f)" for i in (0, 1))
        + "; steps that take longer need a larger --stall_timeout"
    )


def test_one_is_silent(tmp_path):
    def statuses(second):
        return [status(0, second, second), status(1, 7, 7)]

    assert "worker 1 (pid 101 on elsewhere) gives no sign of life in training; worker 0" in sentence_after(
        tmp_path, 11, statuses
    )


def test_one_has_never_begun(tmp_path):
    assert "worker 1 has never given a sign of life" in sentence_after(
        tmp_path, 11, lambda second: [status(0, second, 5)]
    )


def test_without_a_limit(tmp_path):
    def statuses(second):
        return [status(rank, 1, 1, limit=0.0, silence=0.0) for rank in (0, 1)]

    assert sentence_after(tmp_path, 60, statuses) is None


def test_a_watch_that_was_stopped_itself_counts_nothing_of_that(tmp_path):
    """As after Ctrl-Z and fg, or when a laptop sleeps."""
    assert sentence_after(tmp_path, 5, lambda second: [status(0, second, 5), status(1, second, 5)], step=3600) is None


def test_a_disk_that_is_full_is_no_standstill(tmp_path):
    """The disk of the job's folder is full for longer than the limit: nothing is ended, but for a worker that is
    stopped then.
    """

    def publish(second: int, ranks: tuple[int, ...]) -> None:
        with full_disk() if second in range(5, 40) else contextlib.nullcontext():
            for rank in ranks:
                watchdog.publish(str(tmp_path), status(rank, second, second))

    watch = watchdog.Watch(range(2))
    for second in range(60):
        publish(second, (0, 1))
        watch.look(str(tmp_path), now=second)
        assert watch.sentence() is None
    assert [one.ticks for one in watchdog.read(str(tmp_path), range(2))] == [59, 59]
    watch = watchdog.Watch(range(2))
    for second in range(20):
        publish(second, (0, 1) if second < 3 else (0,))
        watch.look(str(tmp_path), now=second)
    assert "worker 1 (pid 101 on elsewhere) gives no sign of life in training; worker 0" in watch.sentence()


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path):
    watchdog.publish(str(tmp_path / "missing" / "folder"), status(0, 1, 1))
    assert not (tmp_path / "missing").exists()
    assert watchdog.read(str(tmp_path / "missing"), range(2)) == []
