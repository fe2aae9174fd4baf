"""What the doctor says of machines that are as they should be, and of one thing after the other that is not."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys

import pytest

from instcls_tf.distributed import ports
from instcls_tf.doctor import judgement, machine, measure
from instcls_tf.doctor.examine import examine, refuse_problems
from instcls_tf.doctor.finding import OK, PROBLEM, WARNING
from instcls_tf.errors import UserError
from instcls_tf.plan.step_model import share_of
from instcls_tf.report.answer import Answer
from tests.commands import run_command, script
from tests.recipes import PLANNED

PACKAGES = {"python": "3.11.7", "tensorflow": "2.15.1", "horovod": "0.28.1"}
GOOD = {
    "host": "a",
    "versions": PACKAGES,
    "code": "c0de",
    "mpirun": "/bin/mpirun",
    "horovod": ["mpi_lib.so"],
    "kernels": ["softmax", "views"],
    "workers": 2,
    "cores": 8,
    "allowed_cores": 8,
    "is_bound": False,
    "share": 4,
    "threads": 4,
    "free_memory": 10**10,
    "shared_memory": 2**30,
    "home_is_writable": True,
    "listening": ["127.0.0.1:1024"],
}


def test_good_machines():
    findings = judgement.of_machines([GOOD, GOOD])
    assert {finding.level for finding in findings} == {OK}
    assert not [finding.todo for finding in findings if finding.todo]


@pytest.mark.parametrize(
    ("topic", "level", "change", "says"),
    [
        ("versions", PROBLEM, {"versions": {**PACKAGES, "horovod": "0.27"}}, "worker 1 on b has horovod 0.27"),
        ("versions", PROBLEM, {"code": "other"}, "the package's code differs: worker 1 on b other, worker 0 c0de"),
        ("build", PROBLEM, {"horovod": []}, "Horovod is not compiled for TensorFlow on b"),
        ("build", PROBLEM, {"mpirun": None}, "no mpirun on b"),
        ("build", PROBLEM, {"kernels": []}, "kernels differ: worker 1 on b []"),
        ("build", WARNING, {"home_is_writable": False}, "the home folder cannot be written on b"),
        ("threads", PROBLEM, {"threads": 3}, "differ: worker 0 on a 4, worker 1 on b 3"),
        ("threads", WARNING, {"cores": 1, "allowed_cores": 1}, "more workers than cores on b"),
        ("threads", OK, {"allowed_cores": 1, "is_bound": True}, "4 per worker, who may run on some of the cores alone"),
        ("threads", OK, {"allowed_cores": 4}, "4 per worker, who share 4 of 8 on b"),
        ("threads", WARNING, {"allowed_cores": 1}, "more workers than cores on b"),
        ("threads", WARNING, {"share": 8}, "4 per worker; cores are left idle on b"),
        ("memory", WARNING, {"shared_memory": 2**26}, "/dev/shm is smaller than 256 MiB on b"),
        ("ports", WARNING, {"host": "a", "listening": ["0.0.0.0:1024"]}, "listens to other machines: worker 1 on a"),
        ("ports", OK, {"listening": ["0.0.0.0:1024"]}, "workers listen to each other: worker 1 on b 0.0.0.0:1024"),
    ],
)  # fmt: skip
def test_a_machine_that_is_not_right(topic, level, change, says):
    findings = {finding.topic: finding for finding in judgement.of_machines([GOOD, {**GOOD, "host": "b", **change}])}
    assert findings[topic].level == level and findings[topic].says.startswith(says)
    assert findings[topic].todo, "each says what to do"
    others = {finding.level for name, finding in findings.items() if name != topic}
    assert others == {OK}


def test_a_machine_without_what_all_need():
    bare = {**GOOD, "versions": {**PACKAGES, "horovod": "none"}, "kernels": []}
    versions, build, *_ = judgement.of_machines([bare, bare])
    assert (versions.level, versions.says) == (PROBLEM, "not installed: horovod")
    assert (build.level, build.says) == (WARNING, "no kernels for the classifier or for views: slower on CPUs")


JOINED = {
    "host": "a",
    "transport": "MPI",
    "workers_in_all": 2,
    "workers": 1,
    "gpus": 0,
    "has_gpus": False,
    "nccl": False,
}


@pytest.mark.parametrize(
    ("change", "levels"),
    [
        ({}, [OK, OK]),
        ({"transport": "Gloo"}, [WARNING, OK]),
        ({"has_gpus": True}, [OK, PROBLEM]),  # which TensorFlow cannot load
        ({"gpus": 1}, [OK, WARNING]),  # without NCCL
        ({"gpus": 1, "nccl": True}, [OK, OK]),
        ({"gpus": 1, "nccl": True, "workers": 2}, [OK, WARNING]),
    ],
)
def test_transport_and_gpus(change, levels):
    assert [finding.level for finding in judgement.of_transport([{**JOINED, **change}] * 2)] == levels


def test_gpus_on_some_hosts_alone():
    _, devices = judgement.of_transport([JOINED, {**JOINED, "gpus": 1}])
    assert (devices.level, devices.says) == (PROBLEM, "some workers have GPUs, others none")


def test_what_was_measured():
    """Slow clocks, networks, folders and images are warnings, and unshared folders a problem."""
    network = {"latency_seconds": 0.001, "sum_bytes_per_second": 1e9, "gather_bytes_per_second": 1e9}
    step = {"encoder_seconds": 0.2, "classifier_seconds": 0.1, "communication_seconds": 0.1}
    folder = {"problem": "", "write_bytes_per_second": 1e9, "read_bytes_per_second": 1e9, "free_bytes": 10**12}
    pairs = [
        (judgement.of_clocks, (0.01,), (2.0,), WARNING),
        (judgement.of_collectives, (network,), ({**network, "latency_seconds": 0.1},), WARNING),
        (judgement.of_step, (step, 1000, {}), ({**step, "communication_seconds": 0.4}, 1000, {}), WARNING),
        (judgement.of_workdir, ("r", folder), ("r", {**folder, "write_bytes_per_second": 1e6}), WARNING),
        (judgement.of_workdir, ("r", folder), ("r", {**folder, "free_bytes": 10**6}), WARNING),
        (judgement.of_workdir, ("r", folder), ("r", {"problem": "worker 1 does not see it"}), PROBLEM),
        (judgement.of_decoding, ([300.0, 200.0], 199.0), ([300.0, 200.0], 201.0), WARNING),
    ]
    for judge, good, bad, level in pairs:
        assert (judge(*good).level, judge(*good).todo) == (OK, "")
        assert judge(*bad).level == level and judge(*bad).todo


@pytest.mark.parametrize(("num_instances", "rate"), [(512, 64.0), (10_000, 512.0)])
def test_images_that_a_step_needs(num_instances, rate):
    """A worker of two has 4 or 32 of the groups of 64, in four seconds."""
    config, measured = PLANNED.replace(batch_size=4096, micro_batch=64), {"encoder_seconds": 3.0}
    share = share_of(config, num_instances, 2)
    assert judgement.needed_rate({**measured, "classifier_seconds": 1.0}, share) == rate
    assert judgement.needed_rate({**measured, "classifier_seconds": None}, share) is None


def test_images_that_a_cache_keeps_are_decoded_once():
    """Steps do not wait for them, however slowly they are decoded; without one it is named, where there can be one."""
    kept = judgement.of_decoding([21.0, 30.0], 80.0, is_kept=True, can_be_kept=True)
    said = "21 images/s decoded by the slowest worker, each image once: --cache keeps them for the steps"
    assert (kept.level, kept.says, kept.todo) == (OK, said, "")
    without = judgement.of_decoding([21.0, 30.0], 80.0, can_be_kept=True)
    assert without.level == WARNING and without.todo.startswith("--cache=ram, which decodes each image once, ")
    assert "--cache" not in judgement.of_decoding([21.0], 80.0).todo


@pytest.mark.parametrize("command", [("doctor",), ("benchmark", "step")])
def test_a_cache_of_what_no_cache_keeps(command):
    finished = run_command(script(*command, "--dataset=digits", "--cache=ram"))
    wanted = "--cache=ram: keeps images of a folder, wanted --dataset=folder:PATH, or no cache with --dataset=digits"
    assert (finished.status, finished.stderr) == (2, f"error: {wanted}\n")


def test_problems_end_with_another_status():
    refuse_problems(examine(None, as_json=True))
    with pytest.raises(UserError, match="a run would not do here, because of: threads, workdir"):
        findings = [{"topic": topic, "level": PROBLEM} for topic in ("threads", "workdir")]
        refuse_problems(Answer({"findings": [*findings, {"topic": "clocks", "level": WARNING}]}))


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    """A problem with the flag, not a traceback; nothing stays."""

    def write(path):
        path.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(measure, "_write", write)
    folder = str(tmp_path / "runs" / "june" / "run")
    found = measure.workdir(folder)
    assert found == {"problem": f"--workdir={folder}: worker 0 cannot keep 64 MB there (No space left on device)"}
    assert judgement.of_workdir(folder, found).level == PROBLEM
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(measure, "_write", lambda path: path.write_bytes(b"all"))
    assert measure.workdir(folder)["free_bytes"] > 0
    (tmp_path / "runs").mkdir()
    assert measure.workdir(folder)["problem"] == ""
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_listening():
    """Sockets of this very process."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        with socket.create_server(("", 0)) as every:
            wanted, everywhere = (f"{host}:{port}" for host, port in (one.getsockname(), every.getsockname()))
            assert {wanted, everywhere} <= set(ports.listening(os.getpid()))
        assert everywhere not in ports.listening(os.getpid())
        assert wanted in ports.listening(os.getpid())
    assert not ports.is_open_to_others(wanted) and ports.is_open_to_others(everywhere)


def test_listening_over_ipv6():
    try:
        six = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 to listen on: {error}")
    with six:
        assert f"[::1]:{six.getsockname()[1]}" in ports.listening(os.getpid())


# Of Linux on a little-endian processor: local and remote address, state, and the inode in the tenth column.
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 51 1 0
   1: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 52 1 0
   2: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 53 1 0
   3: B80D01200000000000000000EFBE0000:01BB B80D01200000000000000000010000AD:A1B2 01 00000000:00000000 00:00000000 00000000     0        0 54 1 0
   4: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 55 1 0
"""  # noqa: E501


@pytest.mark.skipif(sys.byteorder != "little", reason="the text is that of a little-endian processor")
def test_the_table_of_ipv6():
    """What is another process's (55) or only connected (54) does not listen here."""
    found = ports._listening_in(TCP6, {"51", "52", "53", "54"})
    assert found == ["[::1]:8080", "[::]:22", "127.0.0.1:80"]
    assert [ports.is_open_to_others(place) for place in found] == [False, True, False]


def test_this_machine():
    """As it is set up for tests: all of it is there."""
    own = machine.describe(1)
    assert "none" not in own["versions"].values() and own["horovod"] and own["mpirun"]


def test_the_quick_command():
    finished = run_command(script("doctor", "--quick", "--json"))
    assert finished.status == 0, finished.output
    (line,) = finished.stdout.splitlines()
    assert [finding["topic"] for finding in json.loads(line)["findings"]] == [
        "versions", "build", "threads", "memory", "ports"
    ]  # fmt: skip
