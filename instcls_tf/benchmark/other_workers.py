"""What the other workers of a classifier's step would send, for `benchmark classifier --as_worker_of`."""

from __future__ import annotations

import math

import tensorflow as tf

from instcls_tf.benchmark.sizes import ClassifierBenchmark
from instcls_tf.classifier.shift import needs_shift
from instcls_tf.distributed import partition


class OtherWorkers:
    """`collectives.Others` of worker 0 of T: random rows of the batch, and sums as random directions have them.

    The work on a row does not depend on its values; the sums keep the loss finite.

    Args:
      settings: of the benchmark, whose `as_worker_of` is T.
    """

    def __init__(self, settings: ClassifierBenchmark):
        num_instances, workers, size = settings.num_instances, settings.as_worker_of, settings.embedding_size
        _, rows = partition.bounds(settings.batch_rows, workers, 0)
        _, classes = partition.bounds(num_instances, workers, 0)
        others = settings.batch_rows - rows
        random = tf.random.Generator.from_seed(2)
        ids = random.uniform([others], 0, num_instances, tf.int32)
        self._rows = {
            "embeddings": tf.math.l2_normalize(random.normal([others, size]), axis=1),
            "ids": tf.stack([ids, random.uniform([others], 1, workers, tf.int32)], axis=1),  # with the worker of each
            "rows": random.uniform([others, settings.hard_negatives], 0, num_instances, tf.int32),
        }
        # Cosines of random directions have the variance 1 / D.
        tau = settings.temperature
        # No cosine is above 1, and with a shift no term of a sum.
        exp = 1.0 if needs_shift(tau) else math.exp(min(1 / (2 * size * tau), 1) / tau)
        exp_sum, target_sum, own_logit = (num_instances - classes) * exp, 1.0, 0.0
        self._sums = {"sums": tf.constant([[exp_sum], [target_sum], [own_logit]])}

    def gathered(self, own: tf.Tensor, name: str) -> tf.Tensor:
        """This worker's rows, then those of the others."""
        return tf.concat([own, self._rows[name.rpartition("_")[2]]], axis=0)

    def summed(self, own: tf.Tensor, name: str) -> tf.Tensor:
        """With the others' parts of the softmax; of the embeddings' gradients the others have none."""
        return own + self._sums.get(name.rpartition("_")[2], 0.0)

    def largest(self, own: tf.Tensor, name: str) -> tf.Tensor:
        """The others have no larger ones; for the shift theirs are 0, as rows without a label here need one."""
        return tf.maximum(own, 0.0) if name.endswith("_shift") else tf.identity(own)
