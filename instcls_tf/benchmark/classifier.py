"""The sharded classifier's step against what any exact softmax must compute, and against the plain way to do it.

Any exact training step needs three matrix products of B rows, n classes and D columns: logits, the gradient for the
embeddings and the one for the class weights. Their time alone is the yardstick; the streamed step computes a fourth
(the logits again) instead of keeping B x n numbers, and does everything else a step needs: exp, sums, labels,
collectives, weight decay, momentum. The plain way is `DataParallelClassifier`: all N classes on every worker, the
logits of its rows in full, Horovod's `DistributedGradientTape`.
"""

from __future__ import annotations

import dataclasses
import threading
import time

import psutil
import tensorflow as tf

from instcls_tf.benchmark.data_parallel import DataParallelClassifier
from instcls_tf.benchmark.sizes import WARM_UP_INSTANCES, ClassifierBenchmark
from instcls_tf.benchmark.timing import seconds_of, slowest
from instcls_tf.classifier.kernels import passes
from instcls_tf.classifier.labels import ListsOfRows
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.distributed import collectives, cores, device, workers
from instcls_tf.plan import classifier_bytes


def measure_classifier(settings: ClassifierBenchmark) -> dict[str, float]:
    """All workers together; the figures are those of the slowest worker.

    Returns:
      `seconds_per_step`, `bare_matmul_seconds`, `ratio_to_matmul`, `plain_seconds_per_step` (the last three if asked
      for), `state_bytes` (class weights and momentum of a worker), `peak_rss_bytes`, `peak_bytes` (the part of it that
      came after the process had started), `peak_bytes_above_state` (of that, what class weights and momentum do not
      account for), `planned_bytes` (what `plan` says of `peak_bytes`), `kernels` and `workers`.
    """
    workers.start()
    settings.validate(collectives.size())
    # What any first step brings along (libraries, buffers of Horovod) is no memory of the classifier.
    small = dataclasses.replace(settings, num_instances=min(settings.num_instances, WARM_UP_INSTANCES))
    _make_layer(small)(*_batch(small), learning_rate=0.1)
    device.return_freed_memory()
    batch = _batch(settings)
    before = psutil.Process().memory_info().rss
    with _PeakMemory() as peak:
        layer = _make_layer(settings)
        seconds = seconds_of(lambda: layer(*batch, learning_rate=0.1).loss.numpy(), settings.repeats)
    state_bytes = sum(v.shape.num_elements() * v.dtype.size for v in layer.variables)
    result = {
        "workers": collectives.size(),
        "num_instances": settings.num_instances,
        "batch_rows": settings.batch_rows,
        "kernels": (passes.usable_kernels() or ["TensorFlow"])[0],
        "seconds_per_step": seconds,
        "state_bytes": state_bytes,
        "peak_rss_bytes": int(slowest(peak.bytes)),
        "peak_bytes": int(slowest(peak.bytes - before)),
        "peak_bytes_above_state": int(slowest(peak.bytes - before - state_bytes)),
        "planned_bytes": _planned(settings),
    }
    if settings.bare:
        result["bare_matmul_seconds"] = _bare_products(settings, layer.read(tf.range(layer.num_local)))
        result["ratio_to_matmul"] = result["seconds_per_step"] / result["bare_matmul_seconds"]
    if settings.plain:
        del layer
        result["plain_seconds_per_step"] = _plain_step(settings)
    return result


def _make_layer(settings: ClassifierBenchmark) -> ShardedClassifier:
    layer = ShardedClassifier(
        settings.num_instances,
        settings.embedding_size,
        smoothing=settings.smoothing,
        weights_dtype=settings.class_weights_dtype,
        momentum_dtype=settings.class_momentum_dtype,
        products_dtype=settings.class_products_dtype,
    )
    layer.initialize_gaussian()
    return layer


def _planned(settings: ClassifierBenchmark) -> int:
    """What the planner says of the fullest worker."""
    return classifier_bytes.peak_bytes(
        settings.num_instances,
        collectives.size(),
        settings.batch_rows,
        settings.embedding_size,
        settings.hard_negatives if settings.smoothing else 0,
        threads=cores.threads_of_worker(collectives.local_size()),
        weights_dtype=settings.class_weights_dtype,
        momentum_dtype=settings.class_momentum_dtype,
    )


def _batch(settings: ClassifierBenchmark) -> tuple[tf.Tensor, tf.Tensor, ListsOfRows | None]:
    """This worker's share: embeddings `[b, D]`, instance ids `[b]` and the hard negatives of its rows."""
    begin, end = collectives.own_bounds(settings.batch_rows)
    random = tf.random.Generator.from_seed(1 + collectives.rank())
    ids = random.uniform([end - begin], 0, settings.num_instances, tf.int32)
    hard_negatives = None
    if settings.smoothing:
        shape = [end - begin, settings.hard_negatives]
        hard_negatives = ListsOfRows(random.uniform(shape, 0, settings.num_instances, tf.int32))
    return random.normal([end - begin, settings.embedding_size]), ids, hard_negatives


def _bare_products(settings: ClassifierBenchmark, weights: tf.Tensor) -> float:
    """Seconds of the three products on this worker's classes, in float32; `[B, n]` logits written once, read twice."""
    embeddings = tf.random.normal([settings.batch_rows, settings.embedding_size])

    @tf.function(autograph=False)
    def products(embeddings: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        logits = tf.matmul(embeddings, weights, transpose_b=True)  # [B, n]
        for_embeddings = tf.matmul(logits, weights)  # [B, D]
        for_weights = tf.matmul(logits, embeddings, transpose_a=True)  # [n, D]
        return for_embeddings[0, 0] + for_weights[0, 0]

    return seconds_of(lambda: products(embeddings, weights).numpy(), settings.repeats)


def _plain_step(settings: ClassifierBenchmark) -> float:
    """Seconds of a step in which each worker holds all classes and its share of the rows."""
    layer = DataParallelClassifier(settings.num_instances, settings.embedding_size)
    embeddings, ids, _ = _batch(settings)
    return seconds_of(lambda: layer.step(embeddings, ids, tf.constant(0.1)).numpy(), settings.repeats)


class _PeakMemory:
    """The largest resident size of this process while the block runs, looked at every few milliseconds."""

    def __enter__(self) -> _PeakMemory:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.is_set():
            self.bytes = max(self.bytes, process.memory_info().rss)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
