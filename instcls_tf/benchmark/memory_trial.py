"""One trial of `benchmark memory`: does one step of a classifier fit under a memory limit? A process of its own.

  python -m instcls_tf.benchmark.memory_trial DESIGN NUM_INSTANCES BATCH_ROWS EMBEDDING_SIZE \
      WEIGHTS_DTYPE MOMENTUM_DTYPE LIMIT_BYTES

Limited is the resident memory that comes on top of the started process: libraries, thread pools, Horovod and the
kernels of a small step are there before. A thread watches it and ends the process, and the peak is read at the end.
The system's own limits (RLIMIT_AS, RLIMIT_DATA) would be wrong here: TensorFlow's allocator reserves address space in
regions of doubling size, and when refused one it takes whatever is left of the limit, so that others fail. Such a
limit measures the rounding of the regions, not the memory in use.

Prints one JSON object: `{"fits": true, "peak_bytes": ...}` from rank 0, the peak of the fullest worker, or
`{"fits": false}` from a worker that met the limit.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Callable

import tensorflow as tf

from instcls_tf.benchmark.data_parallel import DataParallelClassifier
from instcls_tf.benchmark.sizes import SHARDED, WARM_UP_INSTANCES
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.distributed import collectives, device, partition, workers

_WATCH_SECONDS = 0.05


def peak_of_one_step(
    design: str, num_instances: int, batch_rows: int, embedding_size: int, dtypes: tuple[str, str], limit: int
) -> int:
    """Makes a classifier and one step of it in this process; all workers together.

    Args:
      design: `sharded` or `data_parallel`.
      num_instances: N.
      batch_rows: B, of all workers together.
      embedding_size: D.
      dtypes: how the sharded design keeps class weights and momentum.
      limit: bytes that this worker may take; 0 for no limit.

    Returns:
      The peak resident memory of this worker above that of the start, in bytes. Above the limit the process ends.
    """
    _one_step(design, min(WARM_UP_INSTANCES, num_instances), batch_rows, embedding_size, dtypes)
    device.return_freed_memory()  # what the small step has freed must not be used for the large one unseen
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    start = _status("VmRSS")
    if limit:
        threading.Thread(target=_watch, args=(start + limit,), daemon=True).start()
    _one_step(design, num_instances, batch_rows, embedding_size, dtypes)
    peak = _status("VmHWM")
    if limit:
        _end_if_above(start + limit, peak)
    return peak - start


def _watch(most: int) -> None:
    while True:
        _end_if_above(most, _status("VmRSS"))
        time.sleep(_WATCH_SECONDS)


def _end_if_above(most: int, used: int) -> None:
    if used > most:
        os.write(1, b'{"fits": false}\n')
        # Horovod's shutdown at exit would wait for the workers that still compute.
        os._exit(1)


def _one_step(design: str, num_instances: int, batch_rows: int, embedding_size: int, dtypes: tuple[str, str]) -> None:
    if design == SHARDED:
        step = _sharded(num_instances, embedding_size, *dtypes)
    else:
        step = _data_parallel(num_instances, embedding_size)
    begin, end = partition.bounds(batch_rows, collectives.size(), collectives.rank())
    embeddings = tf.random.stateless_normal([end - begin, embedding_size], [0, begin])
    instance_ids = tf.range(begin, end) % num_instances
    loss = step(embeddings, instance_ids, tf.constant(0.1))
    tf.debugging.assert_all_finite(loss, "the loss")


def _sharded(
    num_instances: int, embedding_size: int, weights_dtype: str, momentum_dtype: str
) -> Callable[..., tf.Tensor]:
    classifier = ShardedClassifier(
        num_instances, embedding_size, smoothing=0.0, weights_dtype=weights_dtype, momentum_dtype=momentum_dtype
    )

    @tf.function(autograph=False)
    def step(embeddings: tf.Tensor, instance_ids: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            loss = classifier(embeddings, instance_ids, None, learning_rate).loss
        with tf.control_dependencies([tape.gradient(loss, embeddings)]):
            return tf.identity(loss)

    return step


def _data_parallel(num_instances: int, embedding_size: int) -> Callable[..., tf.Tensor]:
    classifier = DataParallelClassifier(num_instances, embedding_size)
    return lambda *batch: classifier.step(*batch)  # the method alone would not keep the variables alive


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(kilobytes)


def main() -> None:
    """The trial as a command."""
    design, num_instances, batch_rows, embedding_size, weights_dtype, momentum_dtype, limit = sys.argv[1:]
    workers.start()
    dtypes = (weights_dtype, momentum_dtype)
    peak = peak_of_one_step(design, int(num_instances), int(batch_rows), int(embedding_size), dtypes, int(limit))
    peak = int(tf.function(collectives.max_over_workers)(tf.constant(float(peak)), "peak"))
    if collectives.rank() == 0:
        print(json.dumps({"fits": True, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
