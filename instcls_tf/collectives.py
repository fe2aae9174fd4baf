"""The collectives of the method, and the only place that imports Horovod.

Every reduction is a sum (or a maximum): the loss is divided by the global number of rows once, nothing else is ever
averaged. No function here is differentiated: Horovod's own gradient of `allgather` averages, which is wrong by a
factor of T for a model-parallel layer. With one worker each function returns its input, so that the package works
without a launcher and without an initialised Horovod.

`name` identifies a tensor across the workers: two tensors that travel under different names are never mixed, whatever
order the executors start them in. It must be unique within a `tf.function`; in eager mode Horovod ignores it, so
callers wrap what they send in a `tf.function`. Name scopes are ignored: TensorFlow puts the call stack of nested
functions into them, which differs between workers as soon as one of them retraces for a new batch size, and workers
that wait for different names wait for ever.
"""

from __future__ import annotations

import tensorflow as tf

from instcls_tf import partition
from instcls_tf.launcher import launched_rank_and_size

_size = 1
_rank = 0
_local_rank = 0


def init() -> None:
    """Joins the other workers if a launcher started this process; otherwise this is the only worker."""
    global _size, _rank, _local_rank
    if launched_rank_and_size() is None:
        return
    _size, _rank, _local_rank = _horovod().size(), _horovod().rank(), _horovod().local_rank()


def _horovod():
    import horovod.tensorflow as hvd

    if not hvd.is_initialized():
        hvd.init()
    return hvd


def size() -> int:
    """The number of workers, T."""
    return _size


def rank() -> int:
    """This worker's place in 0 .. T-1."""
    return _rank


def local_rank() -> int:
    """This worker's place among those on the same machine: the index of the GPU it takes."""
    return _local_rank


def all_gather(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """Concatenates the workers' tensors along axis 0 in the order of ranks; their first dimensions may differ."""
    return tensor if _size == 1 else _horovod().allgather(tensor, name=name, ignore_name_scope=True)


def sum_over_workers(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """The element-wise sum of the workers' tensors, on every worker."""
    return tensor if _size == 1 else _allreduce(tensor, _horovod().Sum, name)


def max_over_workers(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """The element-wise maximum of the workers' tensors, on every worker."""
    return tensor if _size == 1 else _allreduce(tensor, _horovod().Max, name)


def _allreduce(tensor: tf.Tensor, op, name: str) -> tf.Tensor:
    return _horovod().allreduce(tensor, op=op, name=name, ignore_name_scope=True)


def sum_and_keep_own_rows(tensor: tf.Tensor, local_rows: tf.Tensor, name: str) -> tf.Tensor:
    """Sums `[B, ...]` tensors over the workers and returns the rows that this worker put into an `all_gather`.

    Args:
      tensor: `[B, ...]`, this worker's contribution to all rows.
      local_rows: scalar int32, how many of the B rows are this worker's own.
      name: the tensor's name across the workers.

    Returns:
      `[local_rows, ...]`, complete sums.
    """
    if _size == 1:
        return tensor
    total = sum_over_workers(tensor, name)
    rows_of_each = all_gather(tf.reshape(local_rows, [1]), name + "_rows")  # [T]
    begin = tf.reduce_sum(rows_of_each[:_rank])
    return total[begin : begin + local_rows]


def broadcast_variables(variables: list[tf.Variable]) -> None:
    """Gives every worker rank 0's values."""
    if _size > 1 and variables:
        _horovod().broadcast_variables(variables, root_rank=0)


def average_variables(variables: list[tf.Variable], name: str) -> None:
    """Replaces each variable by its mean over the workers (for BN moving statistics; gradients are summed instead)."""
    if _size == 1:
        return
    for index, variable in enumerate(variables):
        variable.assign(sum_over_workers(variable.read_value(), f"{name}_{index}") / _size)


def barrier() -> None:
    """Returns once every worker has arrived."""
    if _size > 1:
        _horovod().allgather(tf.zeros([1], tf.int32), name="barrier")


def own_bounds(total: int) -> tuple[int, int]:
    """Begin and end of this worker's share of `range(total)`."""
    return partition.bounds(total, _size, _rank)
