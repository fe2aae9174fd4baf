"""The sharded classifier's step against what any exact softmax must compute, and against the plain way to do it.

Any exact training step needs three matrix products of B rows, n classes and D columns: logits, the gradient for the
embeddings and the one for the class weights. Their time alone is the yardstick; the streamed step computes a fourth
(the logits again) instead of keeping B x n numbers, and does everything else a step needs: exp, sums, labels,
collectives, weight decay, momentum. The plain way is `DataParallelClassifier`: all N classes on every worker, the
logits of its rows in full, Horovod's `DistributedGradientTape`.

With `as_worker_of` one process takes itself for worker 0 of T, which has the most classes: the same layer, whose
collectives are told what random others would send (`other_workers.py`). Products and the plain step are its share, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import threading
import time
from contextlib import AbstractContextManager
from typing import Any, Callable

import psutil
import tensorflow as tf

from instcls_tf.benchmark import fitting
from instcls_tf.benchmark.data_parallel import DataParallelClassifier
from instcls_tf.benchmark.other_workers import OtherWorkers
from instcls_tf.benchmark.sizes import WARM_UP_INSTANCES, ClassifierBenchmark, misfit
from instcls_tf.benchmark.timing import seconds_of, slowest
from instcls_tf.checks import refuse_int8_on_gpu
from instcls_tf.classifier.choice import passes_of
from instcls_tf.classifier.kernels import passes
from instcls_tf.classifier.labels import ListsOfRows
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import AUTO, XLA
from instcls_tf.distributed import collectives, cores, device, partition, workers
from instcls_tf.plan import classifier_bytes
from instcls_tf.plan.answer import DATA_PARALLEL, SHARDED
from instcls_tf.report.answer import GIGABYTE, Answer

# What is known of this design where it fits.
_SHARDED = ("seconds_per_step", "state_bytes", "peak_rss_bytes", "peak_bytes", "peak_bytes_above_state")
# Of the table: what is compared, the name of its seconds, and what stands before those of its memory.
_ROWS = (
    ("three bare products", "bare_matmul_seconds", "bare_"),
    (SHARDED, "seconds_per_step", ""),
    (DATA_PARALLEL, "plain_seconds_per_step", "plain_"),
)


def measure_classifier(settings: ClassifierBenchmark) -> Answer:
    """All workers together; the figures are those of the slowest worker.

    What would not fit into the free memory is not tried: its figures are None.

    Returns:
      `seconds_per_step`, `bare_matmul_seconds`, `ratio_to_matmul`, `plain_seconds_per_step` (the last three if asked
      for), `state_bytes` (class weights and momentum of a worker), `peak_rss_bytes`, `peak_bytes` (the part of it that
      came after the process had started), `peak_bytes_above_state` (of that, what class weights and momentum do not
      account for), `planned_bytes` (what `plan` says of `peak_bytes`), `needed_bytes`, `bare_needed_bytes` and
      `plain_needed_bytes` (planned, with room for what formulas do not count) beside `free_bytes`, `bare_free_bytes`
      and `plain_free_bytes` (of a worker, before it began), `kernels`, `threads`, `temperature`, `workers`,
      `as_worker_of`, `collectives_included` (not with `as_worker_of`) and `local_instances`, the classes of the fullest
      worker.
    """
    workers.start()
    settings.validate(collectives.size())
    if tf.config.list_physical_devices("GPU"):
        refuse_int8_on_gpu(settings)
    num_workers = settings.workers_of(collectives.size())
    # What any first step brings along (libraries, buffers of Horovod) is no memory of the classifier.
    small = dataclasses.replace(settings, num_instances=min(settings.num_instances, WARM_UP_INSTANCES))
    _one_step(small)()
    device.return_freed_memory()
    started_with = _resident_bytes()
    planned = _planned(settings)
    result = {
        "workers": collectives.size(),
        "as_worker_of": settings.as_worker_of or None,
        "collectives_included": not settings.as_worker_of,
        "num_instances": settings.num_instances,
        "local_instances": partition.bounds(settings.num_instances, num_workers, 0)[1],
        "batch_rows": settings.batch_rows,
        "temperature": settings.temperature,
        "threads": cores.threads_of_worker(collectives.local_size()),
        "kernels": _computed_by(settings),
        "planned_bytes": planned,
        **_if_it_fits("", planned, lambda: _sharded(settings), _SHARDED),
    }
    # Layers are held by circles of references: their memory is for those that follow.
    gc.collect()
    sizes = (settings.num_instances, num_workers, settings.batch_rows, settings.embedding_size)
    if settings.bare:
        planned = classifier_bytes.bare_products_bytes(*sizes)
        result |= _if_it_fits("bare_", planned, lambda: _bare_products(settings), ("bare_matmul_seconds",))
        seconds, bare = result["seconds_per_step"], result["bare_matmul_seconds"]
        result["ratio_to_matmul"] = seconds / bare if seconds and bare else None
    if settings.plain:
        planned = sum(classifier_bytes.data_parallel_bytes(*sizes).values())
        # One worker's arrays are as large as those before, whose place they take; those of several are larger, and
        # TensorFlow's allocator puts nothing together.
        kept = _resident_bytes() - started_with if num_workers == 1 else 0
        result |= _if_it_fits("plain_", planned, lambda: _plain_step(settings), ("plain_seconds_per_step",), kept)
    return Answer(result, format_table(result))


def _computed_by(settings: ClassifierBenchmark) -> str:
    """The kernels that are taken, or whatever stands in for them."""
    kernels = passes.usable_kernels() if settings.class_passes == AUTO else []
    return kernels[0] if kernels else "XLA" if settings.class_passes == XLA else "TensorFlow"


def _if_it_fits(
    prefix: str, planned: int, measure: Callable[[], dict[str, Any]], names: tuple[str, ...], reused: int = 0
) -> dict[str, Any]:
    fit = fitting.look(planned, reused)
    measured = measure() if fit.holds else dict.fromkeys(names)
    return {**measured, f"{prefix}needed_bytes": fit.needed_bytes, f"{prefix}free_bytes": fit.free_bytes}


def format_table(result: dict[str, Any]) -> str:
    """The result of `measure_classifier` as a Markdown table."""
    bare = result.get("bare_matmul_seconds")
    who = f"{result['workers']} worker(s)"
    if result["as_worker_of"]:
        who = f"one of {result['as_worker_of']} workers ({result['local_instances']:,} classes), without collectives"
    lines = [
        f"| N = {result['num_instances']:,}, B = {result['batch_rows']:,}, {who}"
        " | seconds per step | times the bare products |",
        "|---|---|---|",
    ]
    for title, name, prefix in _ROWS:
        if name in result:
            seconds = result[name]
            needed, free = (result[f"{prefix}{of}_bytes"] for of in ("needed", "free"))
            told = misfit(needed, free) if seconds is None else f"{seconds:.3g}"
            lines.append(f"| {title} | {told} | {f'{seconds / bare:.2f}' if seconds and bare else ''} |")
    if result["peak_bytes"] is not None:
        peak, planned = (result[name] / GIGABYTE for name in ("peak_bytes", "planned_bytes"))
        lines += ["", f"Memory of a worker with this design: {peak:.3f} GB, planned {planned:.3f} GB"]
    return "\n".join(lines)


def _sharded(settings: ClassifierBenchmark) -> dict[str, Any]:
    before = _resident_bytes()
    with _PeakMemory() as peak:
        step = _one_step(settings)
        seconds = seconds_of(step, settings.repeats)
    state_bytes = _state_bytes(settings)
    return {
        "seconds_per_step": seconds,
        "state_bytes": state_bytes,
        "peak_rss_bytes": int(slowest(peak.bytes)),
        "peak_bytes": int(slowest(peak.bytes - before)),
        "peak_bytes_above_state": int(slowest(peak.bytes - before - state_bytes)),
    }


def _one_step(settings: ClassifierBenchmark) -> Callable[[], object]:
    """Makes a layer and a batch, and returns what makes a step of them."""
    share = _share(settings)
    with share():
        batch = _batch(settings)
        layer = _make_layer(settings)

    def step() -> object:
        with share():
            return layer(*batch, learning_rate=0.1).loss.numpy()

    return step


def _share(settings: ClassifierBenchmark) -> Callable[[], AbstractContextManager[None]]:
    """Within what it makes, this process is the worker whose share is measured."""
    if not settings.as_worker_of:
        return contextlib.nullcontext
    return functools.partial(collectives.as_worker, 0, settings.as_worker_of, OtherWorkers(settings))


def _resident_bytes() -> int:
    """What this process has of the machine's memory now."""
    return psutil.Process().memory_info().rss


def _state_bytes(settings: ClassifierBenchmark) -> int:
    """Class weights and momentum of the fullest worker."""
    _, classes = partition.bounds(settings.num_instances, settings.workers_of(collectives.size()), 0)
    dtypes = (settings.class_weights_dtype, settings.class_momentum_dtype)
    return sum(classifier_bytes.table_bytes(classes, settings.embedding_size, dtype) for dtype in dtypes)


def _make_layer(settings: ClassifierBenchmark) -> ShardedClassifier:
    return ShardedClassifier(
        settings.num_instances,
        settings.embedding_size,
        smoothing=settings.smoothing,
        temperature=settings.temperature,
        weights_dtype=settings.class_weights_dtype,
        momentum_dtype=settings.class_momentum_dtype,
        products_dtype=settings.class_products_dtype,
        make_passes=passes_of(settings.class_passes),
    )


def _planned(settings: ClassifierBenchmark) -> int:
    """What the planner says of the fullest worker."""
    return classifier_bytes.peak_bytes(
        settings.num_instances,
        settings.workers_of(collectives.size()),
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


def _bare_products(settings: ClassifierBenchmark) -> dict[str, float]:
    """Seconds of the three products on this worker's classes, in float32; `[B, n]` logits written once, read twice."""
    with _share(settings)():
        begin, end = collectives.own_bounds(settings.num_instances)
    embeddings = tf.random.normal([settings.batch_rows, settings.embedding_size])
    weights = tf.random.normal([end - begin, settings.embedding_size])

    @tf.function(autograph=False)
    def products(embeddings: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        logits = tf.matmul(embeddings, weights, transpose_b=True)  # [B, n]
        for_embeddings = tf.matmul(logits, weights)  # [B, D]
        for_weights = tf.matmul(logits, embeddings, transpose_a=True)  # [n, D]
        return for_embeddings[0, 0] + for_weights[0, 0]

    seconds = seconds_of(lambda: products(embeddings, weights).numpy(), settings.repeats)
    return {"bare_matmul_seconds": seconds}


def _plain_step(settings: ClassifierBenchmark) -> dict[str, float]:
    """Seconds of a step in which each worker holds all classes and its share of the rows."""
    layer = DataParallelClassifier(settings.num_instances, settings.embedding_size, temperature=settings.temperature)
    with _share(settings)():
        embeddings, ids, _ = _batch(settings)
    seconds = seconds_of(lambda: layer.step(embeddings, ids, tf.constant(0.1)).numpy(), settings.repeats)
    return {"plain_seconds_per_step": seconds}


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
