"""Child processes of a sweep: side by side on their own cores, logged, and ended with it; its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing

import psutil
import pytest

from instcls_tf.errors import UserError
from instcls_tf.sweep import jobs as jobs_module
from instcls_tf.sweep.jobs import Job, commit_of, run_jobs
from instcls_tf.sweep.results import append_line, read_lines

OWN = sorted(os.sched_getaffinity(0))
PLACES = [frozenset([OWN[0]]), frozenset([OWN[-1]])]


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def attempts(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]


def test_jobs_run_on_their_cores_and_their_commands_in_order(tmp_path):
    say = python("import os; print('cores', sorted(os.sched_getaffinity(0)), flush=True)")
    wait = python("import time; time.sleep(0.3)")
    jobs = [Job(str(i), str(tmp_path / str(i)), (say, wait, python("print('last')"))) for i in range(3)]
    with closing(run_jobs(jobs, PLACES)) as ended:
        found = {one.job.name: (one.status, one.tail) for one in ended}
    assert found["0"] == (0, f"cores [{OWN[0]}]\nlast")
    assert found["1"] == (0, f"cores [{OWN[-1]}]\nlast")
    assert set(found) == {"0", "1", "2"}
    assert sorted(os.sched_getaffinity(0)) == OWN
    assert [line["status"] for line in attempts(tmp_path / "0")] == [0, 0, 0]
    assert attempts(tmp_path / "0")[1]["seconds"] >= 0.3


def test_the_cpu_time_of_each_command_is_noted(tmp_path):
    work = python("import time\nwhile time.process_time() < 1: pass")
    idle = python("import time; time.sleep(1)")
    jobs = [Job("work", str(tmp_path / "work"), (work, idle)), Job("idle", str(tmp_path / "idle"), (idle,))]
    with closing(run_jobs(jobs, PLACES)) as ended:
        assert [one.status for one in ended] == [0, 0]
    used = [line["cpu_seconds"] for name in ("work", "idle") for line in attempts(tmp_path / name)]
    assert used[0] >= 1
    assert max(used[1:]) < 0.9


def test_the_commit_is_that_with_which_a_command_began(tmp_path, monkeypatch):
    """Somebody commits while the first job runs, and while the second is interrupted."""
    commits = iter(["a", "a", "b", "c"])
    monkeypatch.setattr(jobs_module, "commit", lambda: next(commits))
    train, judge = python("1"), python("2")
    jobs = [Job("one", str(tmp_path / "one"), (train, judge)), Job("two", str(tmp_path / "two"), (train,))]
    with closing(run_jobs(jobs, PLACES[:1])) as ended:
        assert len(list(ended)) == 2
    assert [commit_of(job) for job in jobs] == ["a", "b"]
    with closing(run_jobs(jobs[1:], PLACES[:1])) as ended:
        assert len(list(ended)) == 1
    assert commit_of(jobs[1]) == "b, c"


def test_a_command_that_fails_ends_its_job_alone(tmp_path):
    fail = python("import sys; sys.exit('no such thing')")
    kill = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    never = python(f"open({str(tmp_path / 'never')!r}, 'w')")
    jobs = [Job("a", str(tmp_path / "a"), (fail, never)), Job("b", str(tmp_path / "b"), (kill, never))]
    jobs.append(Job("c", str(tmp_path / "c"), (python("print('well')"),)))
    with closing(run_jobs(jobs, PLACES[:1])) as ended:
        assert [(one.job.name, one.status, one.tail) for one in ended] == [
            ("a", 1, "no such thing"), ("b", -9, ""), ("c", 0, "well"),
        ]  # fmt: skip
    assert not (tmp_path / "never").exists()


def test_what_still_runs_is_ended_with_the_sweep(tmp_path):
    long = python("import time; time.sleep(600)")
    jobs = [Job("short", str(tmp_path / "a"), (python(""),)), Job("long", str(tmp_path / "b"), (long,))]
    with pytest.raises(RuntimeError), closing(run_jobs(jobs, PLACES)) as ended:
        for one in ended:
            assert one.job.name == "short"
            assert any("sleep(600)" in " ".join(child.cmdline()) for child in psutil.Process().children())
            raise RuntimeError
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not any("sleep(600)" in " ".join(child.cmdline()) for child in children)
    (line,) = attempts(tmp_path / "b")
    assert line["status"] == -15


def test_those_that_do_not_end_are_waited_for_together(tmp_path, monkeypatch):
    """Not one after the other: whoever ends a sweep waits for the slowest."""
    deaf = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(600)"
    jobs = [Job(name, str(tmp_path / name), ((*python(deaf), str(tmp_path / f"{name} is deaf")),)) for name in "abc"]
    patience, given, wait = 0.5, [], subprocess.Popen.wait

    def noted(process: subprocess.Popen, timeout: float | None = None) -> int:
        given.append(timeout or 0.0)
        return wait(process, timeout)

    monkeypatch.setattr(jobs_module, "_PATIENCE", patience)
    running = [jobs_module._start(job, 0, frozenset(), ()) for job in jobs]
    while len(list(tmp_path.glob("* is deaf"))) < len(jobs):
        assert all(one.process.poll() is None for one in running)
        time.sleep(0.01)
    monkeypatch.setattr(subprocess.Popen, "wait", noted)
    jobs_module._end(running)
    assert [attempts(tmp_path / name)[0]["status"] for name in "abc"] == [-9] * 3
    assert sum(given) < 2 * patience


def test_a_child_keeps_the_lock_of_its_sweep(tmp_path):
    """As after a sweep that was killed: what it has left still writes into the folder."""
    import fcntl

    def lock() -> int:
        descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    mine = lock()
    long = python("import time; time.sleep(600)")
    jobs = run_jobs(
        [Job("a", str(tmp_path / "a"), (python(""),)), Job("b", str(tmp_path / "b"), (long,))], PLACES, (mine,)
    )
    with closing(jobs):
        next(jobs)
        os.close(mine)
        with pytest.raises(BlockingIOError):
            lock()
    os.close(lock())


def test_lines_survive_a_crash_and_the_last_of_a_key_counts(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    assert read_lines(str(tmp_path), "results.jsonl") == []
    append_line(str(path), {"key": "a", "accuracy": 1})
    append_line(str(path), {"key": "b", "accuracy": 2})
    with open(path, "a") as file:
        file.write('{"key": "c", "accu')
    append_line(str(path), {"key": "a", "accuracy": 3})
    assert read_lines(str(tmp_path), "results.jsonl") == [{"key": "a", "accuracy": 3}, {"key": "b", "accuracy": 2}]
    assert "skipped 1 line(s)" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(tmp_path):
    """For the lines of a sweep, and for the log of a job."""
    with pytest.raises(UserError, match=r"^/dev/full: cannot write this file \(No space left on device\)$"):
        append_line("/dev/full", {"key": "a"})
    (tmp_path / "file").touch()
    job = Job("a", str(tmp_path / "file" / "job"), [(sys.executable, "-c", "")])
    with pytest.raises(UserError, match=rf"^{tmp_path}/file/job: cannot write a log there \(Not a directory\)$"):
        next(run_jobs([job], PLACES))
