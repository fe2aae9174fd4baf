"""With which workers a job that failed is started again, on machines that answer as they are told here."""

from __future__ import annotations

from pathlib import Path

import pytest

from instcls_tf.distributed import hosts as machines
from instcls_tf.distributed import restarts
from instcls_tf.distributed.hosts import Host, Seen
from instcls_tf.distributed.restarts import Options, Outcome, Restarts

UNKNOWN = Outcome(1, None)


@pytest.fixture
def gone(monkeypatch) -> set[str]:
    """The machines that do not answer."""
    names: set[str] = set()

    def look(hosts):
        return {host.name: Seen(f"host {host.name}: does not answer" if host.name in names else "") for host in hosts}

    monkeypatch.setattr(machines, "look", look)
    return names


@pytest.fixture(autouse=True)
def slept(monkeypatch) -> list[float]:
    """The seconds of each pause, of which none passes."""
    seconds: list[float] = []
    monkeypatch.setattr(restarts.time, "sleep", seconds.append)
    return seconds


def job_on(where: str, workers: int, workdir: Path, min_workers: int = 1) -> tuple[Restarts, list[str]]:
    """Its restarts, and what they say."""
    said: list[str] = []
    options = Options(machines.parse(where), workers, 9, min_workers, 0.0)
    return Restarts(options, str(workdir), said.append), said


def save(workdir: Path, step: int) -> None:
    (workdir / "checkpoints").mkdir(exist_ok=True)
    (workdir / "checkpoints" / f"ckpt-{step:08d}.index").touch()


def test_spare_places_are_those_of_machines_that_are_gone(tmp_path, gone):
    """And a machine that answers again has its workers back."""
    job, said = job_on("a:8,b:8,c:8", 16, tmp_path, min_workers=16)
    assert job.hosts == (Host("a", 8), Host("b", 8))
    gone.add("b")
    assert job.follow(UNKNOWN) and job.hosts == (Host("a", 8), Host("c", 8))
    assert said[1:] == ["host b: does not answer", "restart 1 of 9, with 16 worker(s), from the start"]
    assert machines.shares(job.hosts, job.seen) == {"a": 1, "c": 1}
    gone.clear()
    assert job.follow(UNKNOWN) and job.hosts == (Host("a", 8), Host("b", 8))
    gone.update("bc")
    assert not job.follow(UNKNOWN)
    assert said[-1] == "no restart: 8 worker(s) are left, --min_workers=16"


def test_ranks_are_others_when_hosts_have_changed(tmp_path, gone):
    """Nobody has failed twice whose number alone has."""
    job, _ = job_on("a:2,b:2,c:2", 6, tmp_path)
    third = Outcome(1, 2)
    gone.add("a")
    assert job.follow(third) and job.hosts == (Host("b", 2), Host("c", 2))
    assert job.follow(third) and job.hosts == (Host("b", 2), Host("c", 2))
    assert job.follow(third) and job.hosts == (Host("b", 2), Host("c", 1, (0,)))
    assert job.follow(third) and job.hosts == (Host("b", 2), Host("c", 1, (0,)))


def test_a_worker_is_left_out_of_whom_nothing_else_is_to_be_expected(tmp_path, gone):
    job, _ = job_on("a:3", 3, tmp_path)
    for step, outcome in enumerate([Outcome(1, 1), Outcome(1, 1), Outcome(1, 2), UNKNOWN, Outcome(1, 2)]):
        if step == 1:
            save(tmp_path, step)
        assert job.follow(outcome) and job.hosts == (Host("a", 3),)
    assert job.follow(Outcome(1, 2)) and job.hosts == (Host("a", 2, (2,)),)


def test_places_that_are_left_out_keep_their_numbers():
    hosts = machines.parse("a:4,b:1")
    for local_rank, left_out in [(1, (1,)), (1, (1, 2)), (0, (1, 2, 0))]:
        hosts = machines.without_one(hosts, "a", local_rank)
        assert hosts == (Host("a", 4 - len(left_out), left_out), Host("b", 1))
    assert machines.unused_gpus(hosts) == "1+2+0,"
    assert machines.without_one(machines.without_one(hosts, "a", 0), "b", 0) == ()


def test_one_whose_machine_is_gone_is_not_left_out(tmp_path, gone):
    job, _ = job_on("a:2,b:2", 4, tmp_path)
    assert job.follow(Outcome(1, 3))
    gone.add("b")
    assert job.follow(Outcome(1, 3)) and job.hosts == (Host("a", 2),)
    gone.clear()
    assert job.follow(UNKNOWN) and job.hosts == (Host("a", 2), Host("b", 2))


def test_a_worker_that_is_left_out_is_waited_for_on_machines_that_do_not_answer(tmp_path, gone, monkeypatch):
    """Four are wanted: without the one that is left out there are three, until `c` is back."""
    job, said = job_on("a:2,b:2,c:1", 4, tmp_path, min_workers=4)
    job._options = job._options._replace(wait_for_hosts=60.0)
    gone.add("c")
    monkeypatch.setattr(restarts.time, "sleep", lambda seconds: gone.clear())
    assert job.follow(Outcome(1, 3)) and job.hosts == (Host("a", 2), Host("b", 2))
    gone.add("c")
    assert job.follow(Outcome(1, 3)) and job.hosts == (Host("a", 2), Host("b", 1, (1,)), Host("c", 1))
    assert "waiting for c, up to 60 s (--wait_for_hosts)" in said


def test_what_a_machine_lacks_may_take_its_time(tmp_path, gone, slept):
    """Not where the job had come further, nor where a worker has died of its own."""
    job, said = job_on("a:2", 2, tmp_path)
    for _ in range(6):
        job.follow(UNKNOWN)
    job.follow(Outcome(1, 1))
    assert slept == [5, 10, 20, 40, 60, 60]
    assert said[2] == "waiting 10 s, as nothing was saved since the last start"
    save(tmp_path, 3)
    job.follow(UNKNOWN)
    assert len(slept) == 6
    job.follow(UNKNOWN)
    assert slept[6:] == [5]


def test_a_folder_that_cannot_be_looked_at_says_nothing_of_steps(tmp_path, gone, slept):
    """Nor that there were none."""
    save(tmp_path, 3)
    job, said = job_on("a:2", 2, tmp_path)
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    job.follow(UNKNOWN)
    (tmp_path / "away").rename(tmp_path / "checkpoints")
    job.follow(UNKNOWN)
    assert slept == [5, 10]
    assert [line for line in said if line.startswith("restart")] == [
        f"restart {count} of 9, with 2 worker(s), from ckpt-00000003" for count in (1, 2)
    ]
