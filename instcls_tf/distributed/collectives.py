"""The collectives of the method, and the only place that imports Horovod.

Every reduction of the method is a sum (or a maximum): the loss is divided by the global number of rows once, nothing
else is ever averaged. No function here is differentiated: Horovod's own gradient of `allgather` averages, which is
wrong by a factor of T for a model-parallel layer. With one worker each function returns its input, so that the package
works without a launcher and without an initialised Horovod. Where a launcher has started several, none of them is taken
for the only one because it has not joined the others: each would train for itself, and nothing would tell.

Three habits of TensorFlow can leave workers waiting for each other for ever; all are dealt with here.

- `name` identifies a tensor across the workers: two tensors that travel under different names are never mixed,
  whatever order the executors start them in. It must be unique within a `tf.function`; in eager mode Horovod ignores
  it, so callers wrap what they send in a `tf.function`. Name scopes are left out of it: TensorFlow puts the call stack
  of nested functions into them, which differs as soon as one worker retraces for a new batch size and another does not.
- Horovod's operations count as pure. Given a constant, constant folding runs them once while the graph is optimised
  and never again: constants are refused.
- For the same reason a collective whose result a worker does not need is pruned there: every worker must use it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import tensorflow as tf

from instcls_tf.distributed import partition
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.errors import UserError


class Others(Protocol):
    """The other workers: what arrives from them for what this one sends, which is no constant."""

    def gathered(self, own: tf.Tensor, name: str) -> tf.Tensor:
        """What `all_gather` returns."""

    def summed(self, own: tf.Tensor, name: str) -> tf.Tensor:
        """What `sum_over_workers` returns."""

    def largest(self, own: tf.Tensor, name: str) -> tf.Tensor:
        """What `max_over_workers` returns."""


class _OthersOfJob:
    """Those that the launcher has started, by Horovod."""

    def gathered(self, own: tf.Tensor, name: str) -> tf.Tensor:
        return _horovod().allgather(own, name=name, ignore_name_scope=True)

    def summed(self, own: tf.Tensor, name: str) -> tf.Tensor:
        return _horovod().allreduce(own, op=_horovod().Sum, name=name, ignore_name_scope=True)

    def largest(self, own: tf.Tensor, name: str) -> tf.Tensor:
        return _horovod().allreduce(own, op=_horovod().Max, name=name, ignore_name_scope=True)


_others: Others = _OthersOfJob()
_size = 1
_rank = 0
_local_rank = 0
_local_size = 1
_is_settled = False  # whether this worker has joined the others, has left them, or was told to work without them


def init() -> None:
    """Joins the other workers if a launcher started several; otherwise this is the only worker.

    Horovod may have been initialised before. One worker alone leaves MPI alone, too: in a shell of `srun --pty` it may
    be told of a rank and has no MPI to join.
    """
    global _size, _rank, _local_rank, _local_size, _is_settled
    if _are_several():
        hvd = _horovod()
        _size, _rank, _local_rank, _local_size = hvd.size(), hvd.rank(), hvd.local_rank(), hvd.local_size()
    _is_settled = True  # last: one that could not join is not the only one


def _are_several() -> bool:
    """Whether the launcher says so, or Horovod, if it was initialised under a launcher whose words are not known."""
    _, launched = launched_rank_and_size() or (0, 1)
    hvd = sys.modules.get("horovod.tensorflow")
    return launched > 1 or (hvd is not None and hvd.is_initialized() and hvd.size() > 1)


def _is_only_one() -> bool:
    """Whether there is nobody to share with.

    Raises:
      UserError: there are others, and this worker has not joined them.
    """
    if not _is_settled and _size == 1 and _are_several():
        raise UserError("several workers were launched: call instcls_tf.init() first, which joins them")
    return _size == 1


def _horovod() -> Any:
    import horovod.tensorflow as hvd

    if not hvd.is_initialized():
        # Open MPI waits by spinning. Without this the waiting steals the cores that the others compute on (half as fast
        # again with it for 2 workers on 2 cores); where cores are idle it costs nothing.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        hvd.init()
    return hvd


def leave() -> None:
    """Parts from the other workers, all together: from now on each is the only one and nothing runs between them."""
    global _size, _rank, _local_rank, _local_size, _is_settled
    if _size > 1:
        _horovod().shutdown()
    _size, _rank, _local_rank, _local_size, _is_settled = 1, 0, 0, 1, True


def transport() -> str:
    """What the workers' messages travel with: `MPI`, `Gloo`, or `none` for one worker alone."""
    if _size == 1:
        return "none"
    return "MPI" if _horovod().mpi_enabled() else "Gloo"


def has_nccl() -> bool:
    """Whether GPUs exchange tensors by themselves."""
    return _size > 1 and bool(_horovod().nccl_built())


def size() -> int:
    """The number of workers, T."""
    return _size


def rank() -> int:
    """This worker's place in 0 .. T-1."""
    return _rank


def local_rank() -> int:
    """This worker's place among those on the same machine: the index of the GPU it takes."""
    return _local_rank


def local_size() -> int:
    """The number of workers on this machine: they share its cores and caches."""
    return _local_size


def all_gather(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """Concatenates the workers' tensors along axis 0 in the order of ranks; their first dimensions may differ."""
    return tensor if _is_only_one() else _others.gathered(_not_constant(tensor, name), name)


def all_gather_ids(ids: tf.Tensor, name: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Concatenates the workers' ids and remembers which are this worker's.

    Args:
      ids: `[b]` int32; b may differ between workers and be 0.
      name: the tensor's name across the workers.

    Returns:
      `[B]` int32 ids in the order of ranks, and `[B]` bool, true for the rows that came from this worker.
    """
    if _is_only_one():
        return ids, tf.ones_like(ids, tf.bool)
    all_ids, origin = tf.unstack(all_gather(tf.stack([ids, tf.fill(tf.shape(ids), _rank)], axis=1), name), axis=1)
    return all_ids, origin == _rank


def sum_over_workers(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """The element-wise sum of the workers' tensors, on every worker."""
    return tensor if _is_only_one() else _others.summed(_not_constant(tensor, name), name)


def sum_one_by_one(tensors: list[tf.Tensor], name: str) -> list[tf.Tensor]:
    """The sum over the workers of each tensor, one message each: it travels while those after it are computed."""
    return [sum_over_workers(tensor, f"{name}_{index}") for index, tensor in enumerate(tensors)]


def sum_together(tensors: list[tf.Tensor], name: str) -> list[tf.Tensor]:
    """The sum over the workers of each tensor, one message when all are there: for comparison."""
    if _is_only_one():
        return tensors
    hvd = _horovod()
    tensors = [_not_constant(tensor, name) for tensor in tensors]
    return hvd.grouped_allreduce(tensors, op=hvd.Sum, name=name, ignore_name_scope=True)


def max_over_workers(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """The element-wise maximum of the workers' tensors, on every worker."""
    return tensor if _is_only_one() else _others.largest(_not_constant(tensor, name), name)


def _not_constant(tensor: tf.Tensor, name: str) -> tf.Tensor:
    if not tf.executing_eagerly() and tf.get_static_value(tensor) is not None:
        raise ValueError(f"collective {name!r}: its tensor is a constant, which TensorFlow would fold")
    return tensor


def sum_and_keep_own_rows(tensor: tf.Tensor, is_own: tf.Tensor, name: str) -> tf.Tensor:
    """Sums `[B, ...]` tensors over the workers and returns this worker's rows.

    Args:
      tensor: `[B, ...]`, this worker's contribution to all rows.
      is_own: `[B]` bool from `all_gather_ids`.
      name: the tensor's name across the workers.

    Returns:
      `[b, ...]`, complete sums.
    """
    return tensor if _is_only_one() else sum_over_workers(tensor, name)[is_own]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What is made and traced inside knows this worker only, and sends nothing: to measure work without messages."""
    global _size, _rank, _is_settled
    before = _size, _rank, _is_settled
    _size, _rank, _is_settled = 1, 0, True
    try:
        yield
    finally:
        _size, _rank, _is_settled = before


@contextlib.contextmanager
def as_worker(rank: int, size: int, others: Others) -> Iterator[None]:
    """What is made and traced inside takes this process for one of several workers, and sends nothing.

    To measure or to try the work of one worker of many by itself. Gathers, sums and maxima are told by `others`;
    nothing else of this module may be called inside.

    Args:
      rank: the worker's place.
      size: T.
      others: what the others would send.
    """
    global _size, _rank, _others, _is_settled
    before = _size, _rank, _others, _is_settled
    _size, _rank, _others, _is_settled = size, rank, others, True
    try:
        yield
    finally:
        _size, _rank, _others, _is_settled = before


def broadcast_variables(variables: list[tf.Variable]) -> None:
    """Gives every worker rank 0's values."""
    if not _is_only_one() and variables:
        _horovod().broadcast_variables(variables, root_rank=0)


def average_variables(variables: list[tf.Variable], name: str) -> None:
    """Replaces each variable by its mean over the workers (for BN moving statistics; gradients are summed instead)."""
    if _is_only_one():
        return
    for index, variable in enumerate(variables):
        variable.assign(sum_over_workers(variable.read_value(), f"{name}_{index}") / _size)


def data_parallel_tape(tape: tf.GradientTape) -> tf.GradientTape:
    """Horovod's own tape, whose gradients are means over the workers: for comparisons with plain data parallelism."""
    return tape if _is_only_one() else _horovod().DistributedGradientTape(tape)


def barrier() -> None:
    """Returns once every worker has arrived."""
    if not _is_only_one():
        _horovod().allgather(tf.zeros([1], tf.int32), name="barrier")


def own_bounds(total: int) -> tuple[int, int]:
    """Begin and end of this worker's share of `range(total)`.

    Raises:
      UserError: several workers were launched, and this one has not joined the others.
    """
    return (0, total) if _is_only_one() else partition.bounds(total, _size, _rank)
