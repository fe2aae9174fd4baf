"""The collectives of one worker, and what is checked before anything is sent."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.distributed import collectives, partition
from instcls_tf.errors import UserError


class RecordingHorovod:
    """Two workers of which the other one sends 3 everywhere; remembers the names."""

    Sum, Max = "sum", "max"

    def __init__(self):
        self.sent = []

    def allreduce(self, tensor, op, name, ignore_name_scope):
        self.sent.append((op, name, ignore_name_scope))
        return tensor + 3 if op == self.Sum else tf.maximum(tensor, 3)

    def allgather(self, tensor, name, ignore_name_scope=False):
        self.sent.append(("gather", name, ignore_name_scope))
        return tf.concat([tf.fill([2, *tensor.shape[1:]], tf.cast(3, tensor.dtype)), tensor], axis=0)


@pytest.fixture
def two_workers(monkeypatch) -> RecordingHorovod:
    """This process is the second of two workers, as far as the module knows."""
    horovod = RecordingHorovod()
    monkeypatch.setattr(collectives, "_size", 2)
    monkeypatch.setattr(collectives, "_rank", 1)
    monkeypatch.setattr(collectives, "_horovod", lambda: horovod)
    return horovod


def test_one_worker_gets_back_what_it_gave(monkeypatch):
    monkeypatch.setattr(collectives, "_horovod", None)
    for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    collectives.init()
    assert (collectives.size(), collectives.rank(), collectives.local_rank()) == (1, 0, 0)
    tensor, ids = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([5, 6])
    for function in (collectives.all_gather, collectives.sum_over_workers, collectives.max_over_workers):
        assert function(tensor, "test") is tensor
    all_ids, is_own = collectives.all_gather_ids(ids, "test")
    assert all_ids is ids
    np.testing.assert_array_equal(is_own, [True, True])
    assert collectives.sum_and_keep_own_rows(tensor, is_own, "test") is tensor
    variable = tf.Variable([1.0, 2.0])
    collectives.average_variables([variable], "test")
    collectives.broadcast_variables([variable])
    np.testing.assert_array_equal(variable, [1, 2])
    collectives.barrier()
    assert collectives.own_bounds(7) == (0, 7)


@pytest.mark.parametrize(("rank", "size"), [("PMI_RANK", "PMI_SIZE"), ("PMIX_RANK", "SLURM_NTASKS")])
def test_one_worker_in_a_shell_of_slurm(monkeypatch, rank, size):
    """`srun --pty` tells it of a rank, and Open MPI would end it for want of a server there."""
    monkeypatch.setattr(collectives, "_horovod", None)
    for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(rank, "0")
    monkeypatch.setenv(size, "1")
    collectives.init()
    assert (collectives.size(), collectives.rank(), collectives.transport()) == (1, 0, "none")


@pytest.mark.parametrize("function", ["all_gather", "sum_over_workers", "max_over_workers"])
def test_a_constant_is_refused_before_anything_is_sent(two_workers, function):
    send = getattr(collectives, function)

    @tf.function
    def sends_a_constant():
        return send(tf.constant([1.0]), "mine")

    with pytest.raises(ValueError, match="collective 'mine': its tensor is a constant, which TensorFlow would fold"):
        sends_a_constant()
    assert two_workers.sent == []

    @tf.function
    def sends(tensor):
        return send(tensor, "mine")

    sends(tf.constant([1.0]))  # an input is none
    send(tf.constant([1.0]), "mine")  # and without a graph nothing is folded
    assert len(two_workers.sent) == 2


def test_what_several_workers_send(two_workers):
    tensor = tf.constant([1.0, 5.0])
    np.testing.assert_array_equal(collectives.sum_over_workers(tensor, "a"), [4, 8])
    np.testing.assert_array_equal(collectives.max_over_workers(tensor, "b"), [3, 5])
    np.testing.assert_array_equal(collectives.all_gather(tensor, "c"), [3, 3, 1, 5])
    is_own = tf.constant([True, False])
    np.testing.assert_array_equal(collectives.sum_and_keep_own_rows(tensor, is_own, "d"), [4])
    # Names are the workers' agreement; name scopes may differ between them.
    assert two_workers.sent == [("sum", "a", True), ("max", "b", True), ("gather", "c", True), ("sum", "d", True)]


def test_ids_remember_where_they_came_from(two_workers, monkeypatch):
    monkeypatch.setattr(
        two_workers, "allgather", lambda pairs, **_: tf.concat([[[7, 0], [8, 0]], pairs, [[9, 2]]], axis=0)
    )
    ids, is_own = collectives.all_gather_ids(tf.constant([7, 4, 4]), "ids")
    np.testing.assert_array_equal(ids, [7, 8, 7, 4, 4, 9])
    np.testing.assert_array_equal(is_own, [False, False, True, True, True, False])


def test_average_is_the_mean_over_workers(two_workers):
    variables = [tf.Variable([1.0, 2.0]), tf.Variable(5.0)]
    collectives.average_variables(variables, "bn")
    np.testing.assert_array_equal(variables[0], [2, 2.5])
    assert variables[1].numpy() == 4
    assert [name for _, name, _ in two_workers.sent] == ["bn_0", "bn_1"]


def test_share_of_a_worker(two_workers):
    assert (collectives.size(), collectives.rank()) == (2, 1)
    assert collectives.own_bounds(7) == partition.bounds(7, 2, 1) == (4, 7)


def test_alone_sends_nothing_and_ends(monkeypatch):
    monkeypatch.setattr(collectives, "_size", 3)
    monkeypatch.setattr(collectives, "_rank", 2)
    with pytest.raises(ZeroDivisionError), collectives.alone():
        assert (collectives.size(), collectives.rank(), collectives.own_bounds(10)) == (1, 0, (0, 10))
        assert collectives.sum_over_workers(1.0, "x") == 1.0
        raise ZeroDivisionError
    assert (collectives.size(), collectives.rank()) == (3, 2)


@pytest.fixture
def launched(monkeypatch):
    """A launcher has started this process as one of two, and nobody has joined the other."""
    monkeypatch.setattr(collectives, "_is_settled", False)
    monkeypatch.setenv("HOROVOD_RANK", "1")
    monkeypatch.setenv("HOROVOD_SIZE", "2")


ASKED = {
    "bounds": lambda: collectives.own_bounds(10),
    "gather": lambda: collectives.all_gather(tf.ones([2]), "a"),
    "ids": lambda: collectives.all_gather_ids(tf.ones([2], tf.int32), "a"),
    "sum": lambda: collectives.sum_over_workers(tf.ones([2]), "a"),
    "sums": lambda: collectives.sum_together([tf.ones([2])], "a"),
    "maximum": lambda: collectives.max_over_workers(tf.ones([2]), "a"),
    "own rows": lambda: collectives.sum_and_keep_own_rows(tf.ones([2]), tf.constant([True, True]), "a"),
    "broadcast": lambda: collectives.broadcast_variables([tf.Variable(1.0)]),
    "average": lambda: collectives.average_variables([tf.Variable(1.0)], "a"),
    "tape": lambda: collectives.data_parallel_tape(tf.GradientTape()),
    "barrier": collectives.barrier,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_one_of_several_that_has_not_joined_is_not_taken_for_the_only_one(launched, ask):
    with pytest.raises(UserError, match=r"^several workers were launched: call instcls_tf\.init\(\) first"):
        ask()
    with collectives.alone():
        ask()
    with pytest.raises(UserError):
        ask()  # it was alone inside only
    with collectives.as_worker(0, 1, None):
        ask()
    collectives.leave()
    ask()


def test_one_that_could_not_join_is_not_the_only_one_either(launched, monkeypatch):
    """In a notebook, say, where the error is seen and the next cell is run all the same."""

    def fail() -> None:
        raise ImportError("no Horovod here")

    monkeypatch.setattr(collectives, "_horovod", fail)
    with pytest.raises(ImportError):
        collectives.init()
    with pytest.raises(UserError, match="several workers were launched"):
        collectives.own_bounds(10)


def test_a_horovod_that_is_initialised_tells_of_the_others(monkeypatch):
    """Under a launcher that sets none of the variables that are known."""

    class Initialised(RecordingHorovod):
        is_initialized = staticmethod(lambda: True)
        size, rank, local_rank, local_size = (staticmethod(lambda n=n: n) for n in (2, 1, 1, 2))

    for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("_is_settled", "_size", "_rank", "_local_rank", "_local_size"):
        monkeypatch.setattr(collectives, name, getattr(collectives, name))  # as it was, after the test
    monkeypatch.setattr(collectives, "_is_settled", False)
    horovod = Initialised()
    monkeypatch.setattr(collectives, "_horovod", lambda: horovod)
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", horovod)
    with pytest.raises(UserError, match="several workers were launched"):
        collectives.own_bounds(10)
    collectives.init()
    assert collectives.own_bounds(10) == (5, 10)
