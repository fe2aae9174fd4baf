"""How `mpirun` is called, what of its standard error people see, and what is told of a worker that failed."""

from __future__ import annotations

import pytest

from instcls_tf.distributed import hosts, mpirun
from tests.commands import user_environment

RULE = "-" * 74
OF_WORKERS = (
    "[a:12] *** An error occurred in MPI_Allreduce",
    "[a:12] *** MPI_ERR_TRUNCATE: message truncated",
    "[a:13] *** Process received signal ***",
    "[a:13] Signal: Segmentation fault (11)",
    "[b:14] Read -1, expected 4194304, errno = 1",
    "[b:14] [[5,1],1] ORTE_ERROR_LOG: Unreachable in file ess_env_module.c at line 1",
    "step 3",
)
OF_MPIRUN = (
    "[a:77] 1 more process has sent help message help-mpi-api.txt / mpi-abort",
    "[b:15] [[5,0],1] ORTE_ERROR_LOG: Unreachable in file oob_tcp.c at line 1",  # of orted on another host
    "mpirun: Forwarding signal 10 to job",
)
PRIMARY_JOB = "Primary job  terminated normally, but 1 process returned\na non-zero exit code."
EXITED = "mpirun detected that one or more processes exited:\n\n  Process name: [[5,1],1]\n  Exit code:    7"
SIGNALLED = "mpirun noticed that process rank 1 with PID 13 on node a exited on signal 11 (Segmentation fault)."
# The beginning of what Open MPI says of a worker that ends well while the others go on.
WENT = (
    "mpirun has exited due to process rank 1 with PID 13 on\nnode a exiting improperly. There are three reasons this"
    ' could occur:\n\n1. this process did not call "init" before exiting, but others in\nthe job did.'
)
BEFORE_ALL = "WARNING: mpirun has exited before it received notification that all\nstarted processes had terminated."
ABORTED = "MPI_ABORT was invoked on rank 1 in communicator X\nwith errorcode 7."


def fed(*lines: str) -> tuple[str, mpirun.Filter]:
    """What passes of lines, in pieces that end in the midst of them, and the filter."""
    filtered, text = mpirun.Filter(77), "".join(f"{line}\n" for line in lines)
    pieces = [text[start : start + 50] for start in range(0, len(text), 50)]
    return "".join([*map(filtered.feed, pieces), filtered.close()]), filtered


def blocks(*messages: str) -> list[str]:
    return [line for message in messages for line in (RULE, message, RULE)]


def test_what_mpi_tells_in_a_worker_is_for_people():
    passed, _ = fed(*OF_WORKERS[:3], *OF_MPIRUN, *blocks(EXITED), *OF_WORKERS[3:])
    assert passed.splitlines() == list(OF_WORKERS)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([PRIMARY_JOB, EXITED], "ended with status 7 and said nothing of why"),
        (
            [ABORTED, PRIMARY_JOB, EXITED, ABORTED],
            "ended with status 7; MPI: MPI_ABORT was invoked on rank 1 in communicator X with errorcode 7.",
        ),
        ([PRIMARY_JOB, SIGNALLED], "(on a) was ended by SIGSEGV"),
        ([WENT], "ended before the others and said nothing of why"),
        ([WENT, BEFORE_ALL], "ended before the others and said nothing of why"),
        (
            ["It looks like MPI_INIT failed", SIGNALLED],
            "(on a) was ended by SIGSEGV; MPI: It looks like MPI_INIT failed",
        ),
    ],
)
def test_a_cause_that_mpi_tells_stands_beside_how_a_worker_ended(messages, sentence):
    _, filtered = fed(*blocks(*messages))
    ended = filtered.ended()
    assert (ended.rank, ended.sentence) == (1, sentence)


def given_after(option: str, environment: dict[str, str], where: str = "a:1,b:1") -> list[str]:
    """What follows the places of an option in the command line."""
    words = mpirun.command(hosts.parse(where), ["true"], {"PATH": user_environment()["PATH"], **environment})
    return [after for before, after in zip(words, words[1:]) if before == option]


def test_what_other_hosts_get_of_the_environment():
    environment = {
        "OMPI_MCA_plm_rsh_args": "-p 2222",
        "TFDS_DATA_DIR": "/data",
        "XLA_FLAGS": "--a",
        "https_proxy": "http://proxy",
        "HOME": "/home/me",
    }
    assert given_after("-x", environment) == ["PATH", "TFDS_DATA_DIR", "XLA_FLAGS", "https_proxy"]
    assert given_after("plm_rsh_args", environment) == ["-o BatchMode=yes -o ConnectTimeout=10 -p 2222"]


@pytest.mark.parametrize(("value", "is_passed_on"), [("", True), ("-1", True), ("2,3", False), ("GPU-8932f937", False)])
def test_the_gpus_of_the_launcher_s_host_are_no_other_s(value, is_passed_on):
    assert ("CUDA_VISIBLE_DEVICES" in given_after("-x", {"CUDA_VISIBLE_DEVICES": value})) is is_passed_on


def test_another_word_for_how_messages_travel_between_hosts():
    """As clusters with InfiniBand set it; the command line would win over the environment."""
    assert given_after("pml", {}) == ["ob1"] and given_after("btl", {}) == ["^openib"]
    ucx = {"OMPI_MCA_pml": "ucx"}
    assert given_after("pml", ucx) == [] and given_after("btl", ucx) == ["^openib"]
    assert given_after("btl", {"OMPI_MCA_btl": "self,tcp"}) == []
    assert given_after("pml", ucx, "localhost:2") == ["ob1"]  # through shared memory
