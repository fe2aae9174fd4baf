"""What a checkpoint is made of: variables that all workers hold alike, and tensors that are split over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

from instcls_tf import stamps
from instcls_tf.errors import UserError

# Rows that are in memory twice while they are written or read.
CHUNK_ROWS = 2**19


class Slices(NamedTuple):
    """This worker's rows of a tensor that is split over the workers."""

    variable: tf.Variable  # [n, ...]
    begin: int  # the first of its rows in the whole tensor
    total: int  # N

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Begin and end of the rows that are written and read at a time."""
        rows = self.variable.shape[0]
        for start in range(0, rows, CHUNK_ROWS):
            stamps.go_on()
            yield start, min(start + CHUNK_ROWS, rows)

    def spec(self, start: int, stop: int) -> str:
        """`spec_of_rows` of some of these."""
        return spec_of_rows([self.total, *self.variable.shape[1:]], self.begin + start, self.begin + stop)


def spec_of_rows(shape: Sequence[int], begin: int, end: int) -> str:
    """TensorFlow's notation of some rows of a tensor: the whole shape, then `begin,length` or `-` per dimension."""
    whole = " ".join(map(str, shape))
    return f"{whole} {begin},{end - begin}" + ":-" * (len(shape) - 1)


def replicated_variables(replicated: tf.train.Checkpoint) -> list[tf.Variable]:
    """The variables of what all workers hold alike, in an order that is the same on all of them."""
    found = tf.train.TrackableView(replicated).descendants()
    return [variable for variable in found if isinstance(variable, tf.Variable)]


def refuse_not_finite(replicated: tf.train.Checkpoint, sliced: dict[str, Slices], where: str) -> None:
    """Refuses a state with which no run can go on, and from which nothing can be read.

    Args:
      replicated: what all workers hold alike.
      sliced: this worker's part of the rest.
      where: begins the sentence.

    Raises:
      UserError: a value is not finite; names the first such variable.
    """
    refuse_variables_not_finite(replicated_variables(replicated), where)
    for name, part in sliced.items():
        for start, stop in part.chunks():
            _refuse(name, part.variable.sparse_read(tf.range(start, stop)), where)


def refuse_variables_not_finite(variables: Iterable[tf.Variable], where: str) -> None:
    """`refuse_not_finite` of some variables."""
    for variable in variables:
        _refuse(variable.name, variable, where)


def _refuse(name: str, values: tf.Tensor | tf.Variable, where: str) -> None:
    if values.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(values)):
        raise UserError(f"{where}: {name} has values that are not finite")
