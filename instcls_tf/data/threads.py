"""How many threads a pipeline's stages have: a fixed number, without TensorFlow's autotuner.

Letting go of an iterator waits for the autotuner's thread, which may miss the call to end (TensorFlow 2.15 marks the
cancellation only after it has woken the thread up) and then sleeps on: for as long as it had run before, up to a
minute, at the end of every run and evaluation. Without it a stage has the parallelism that it is given: a `map` that
names none runs on one thread.
"""

from __future__ import annotations

from typing import Any


def parallel_calls() -> int:
    """For `num_parallel_calls`: this worker's share of the machine's cores, and at least 2 so that stages overlap.

    Reading needs no agreement of the workers: cores beyond what all of them compute with are of use here.
    """
    from instcls_tf.distributed import collectives, cores

    return max(2, cores.own_share(collectives.local_size()))


def without_autotuner(dataset: Any) -> Any:
    """The same `tf.data.Dataset`; to be called on what is iterated over, or on what that is made from."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
