"""How many threads a pipeline's stages have: a fixed number, without TensorFlow's autotuner.

Letting go of an iterator waits for the autotuner's thread, which may miss the call to end (TensorFlow 2.15 marks the
cancellation only after it has woken the thread up) and then sleeps on: for as long as it had run before, up to a
minute, at the end of every run and evaluation. All cores are the most that it would choose.
"""

from __future__ import annotations

import tensorflow as tf

from instcls_tf import cores


def parallel_calls() -> int:
    """For `num_parallel_calls`: the cores that this process may run on."""
    return cores.allowed()


def without_autotuner(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same dataset; to be called on what is iterated over, or on what that is made from."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
