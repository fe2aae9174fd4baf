"""The time of saving and reading a checkpoint of N class weights and their momentum, against bare writing and reading.

  save_seconds           all of a save: written by all workers, read back, checksums, on the disk, old one removed
  bare_write_seconds     as many bytes written by all workers into plain files, and brought onto the disk
  check_seconds          a resume's look at the checkpoint: all files read for their checksums, by one worker
  restore_seconds        reading it, and looking whether all values are finite
  bare_read_seconds      as many bytes read from the plain files

All are medians over the repeats, of the slowest worker. What was just written is still in the system's memory: a resume
after a restart of the machine reads from the disk.
"""

from __future__ import annotations

import os
import tempfile

import numpy as np
import tensorflow as tf

from instcls_tf.benchmark import fitting
from instcls_tf.benchmark.timing import seconds_of
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.distributed import collectives, workers
from instcls_tf.files import flush_to_disk
from instcls_tf.plan import classifier_bytes
from instcls_tf.run import checkpoint, checkpoint_choice
from instcls_tf.run.parts import Slices

_BLOCK = 2**22


def measure_checkpoint(num_instances: int, embedding_size: int, repeats: int, folder: str) -> dict[str, float]:
    """Measures a checkpoint of class weights; all workers together.

    Args:
      num_instances: N.
      embedding_size: D.
      repeats: how often each is timed.
      folder: where they are written, which all workers see.

    Returns:
      The figures of this module's docstring, and the sizes that they belong to.

    Raises:
      UserError: class weights and momentum do not fit into the free memory.
    """
    workers.start()
    planned = classifier_bytes.peak_bytes(num_instances, collectives.size(), 1, embedding_size, 0)
    fitting.refuse("checkpoint", planned)
    layer = ShardedClassifier(num_instances, embedding_size)
    sliced = {
        f"classifier/{name}": Slices(variable, layer.begin, num_instances)
        for name, variable in (("rows", layer.local_weights), ("momentum", layer.local_momentum))
    }
    with tempfile.TemporaryDirectory(dir=folder) as own:
        workdir = workers.everybodys(own)[0]  # all workers write into rank 0's folder
        result = _measure(workdir, sliced, repeats)
        collectives.barrier()
    sizes = {"workers": collectives.size(), "num_instances": num_instances, "embedding_size": embedding_size}
    return {**sizes, "bytes": 2 * 4 * num_instances * embedding_size, **result}


def _measure(workdir: str, sliced: dict[str, Slices], repeats: int) -> dict[str, float]:
    replicated, prefix = tf.train.Checkpoint(step=tf.Variable(1)), checkpoint_choice.prefix_of(workdir, 1)
    plain = os.path.join(workdir, f"plain-{collectives.rank()}")
    num_bytes = sum(4 * part.variable.shape.num_elements() for part in sliced.values())

    def check() -> None:
        if collectives.rank() == 0:
            checkpoint_choice.choose(workdir, whole=True)

    return {
        "save_seconds": seconds_of(lambda: checkpoint.save(workdir, 1, replicated, sliced, keep=1), repeats),
        "check_seconds": seconds_of(check, repeats),
        "restore_seconds": seconds_of(lambda: checkpoint.restore(prefix, replicated, sliced), repeats),
        "bare_write_seconds": seconds_of(lambda: _write(plain, num_bytes), repeats),
        "bare_read_seconds": seconds_of(lambda: _read(plain), repeats),
    }


def _write(path: str, num_bytes: int) -> None:
    block = np.random.default_rng(0).bytes(min(_BLOCK, num_bytes))
    with open(path, "wb") as file:
        for start in range(0, num_bytes, _BLOCK):
            file.write(block[: num_bytes - start])
    flush_to_disk(path)


def _read(path: str) -> None:
    with open(path, "rb") as file:
        while file.read(_BLOCK):
            pass
