"""Which worker owns which part of a range, and how many batches an epoch has; integers only.

The same rule splits classes over workers (model parallelism) and the instances of a global batch (data parallelism).
"""

from __future__ import annotations

from typing import Any

from instcls_tf.config import Window


def bounds(total: int, parts: int, index: int) -> tuple[int, int]:
    """The even contiguous split of `range(total)`: where part `index` of `parts` begins and ends.

    The first `total % parts` parts are one larger than the others. Works on Python integers and on integer tensors.

    Returns:
      `(begin, end)`, end exclusive; `begin == end` when there is nothing left for that part.
    """
    size, larger = total // parts, total % parts
    # `index * size + min(index, larger)` without a branch, so that tensors pass through it as well.
    begin = index * size + minimum(index, larger)
    end = (index + 1) * size + minimum(index + 1, larger)
    return begin, end


def steps_per_epoch(num_instances: int, batch_size: int, window: Window | None = None) -> int:
    """Steps that show every instance once; the last one may be smaller.

    Args:
      num_instances: N.
      batch_size: instances of a full batch.
      window: PIC's sliding window if there is one: an epoch is then about N / W windows, which make as many visits in
        all.
    """
    listed = num_instances if window is None else window.size
    return round(num_instances / listed) * -(-listed // batch_size)


def largest_share(instances: int, micro_batch: int, num_workers: int) -> tuple[int, int]:
    """BN groups and instances of a batch on the worker that has the most of them.

    Args:
      instances: of the batch: min(B, N) of a full one.
      micro_batch: instances of a group; the last one may be smaller.
      num_workers: T.
    """
    _, groups = bounds(-(-instances // micro_batch), num_workers, 0)
    return groups, min(instances, groups * micro_batch)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two integers, either of which may be a tensor."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    import tensorflow as tf

    return tf.minimum(tf.cast(a, b.dtype) if tf.is_tensor(b) else a, b)
