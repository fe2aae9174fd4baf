"""The exact search for hard negatives against FAISS's exact flat index on the same rows and cores."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf import collectives, device
from instcls_tf.benchmark.timing import seconds_of
from instcls_tf.classifier import ShardedClassifier
from instcls_tf.errors import UserError
from instcls_tf.hardest_classes import hard_negatives


def measure_hard_negatives(num_instances: int, embedding_size: int, k: int, repeats: int) -> dict[str, float]:
    """All workers together; FAISS runs on rank 0 alone, with the threads of all of them, while the others wait.

    Args:
      num_instances: N.
      embedding_size: D.
      k: K.
      repeats: searches that are timed, of each.

    Returns:
      `seconds`, `faiss_seconds`, `ratio_to_faiss`, `agreement` (the share of equal list members) and `workers`.
    """
    for name, value in (("embedding_size", embedding_size), ("hard_negatives", k), ("repeats", repeats)):
        if value < 1:
            raise UserError(f"--{name}={value}: must be at least 1")
    if num_instances <= k:
        raise UserError(f"--num_instances={num_instances}: must be above --hard_negatives={k}")
    collectives.init()
    device.take()
    layer = ShardedClassifier(num_instances, embedding_size)
    layer.initialize_gaussian()
    seconds = seconds_of(lambda: hard_negatives(layer, k).numpy(), repeats)
    rows = collectives.all_gather(tf.convert_to_tensor(layer.local_rows), "all_rows").numpy()
    lists = collectives.all_gather(hard_negatives(layer, k), "all_lists").numpy()
    faiss_seconds, agreement = _faiss(rows, lists, k, repeats)
    return {
        "workers": collectives.size(),
        "num_instances": num_instances,
        "seconds": seconds,
        "faiss_seconds": faiss_seconds,
        "ratio_to_faiss": seconds / faiss_seconds,
        "agreement": agreement,
    }


def _faiss(rows: np.ndarray, lists: np.ndarray, k: int, repeats: int) -> tuple[float, float]:
    try:
        import faiss
    except ImportError as error:
        raise UserError("benchmark hard_negatives: needs faiss-cpu (see requirements.txt)") from error
    rows = np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    found = []

    def search() -> None:
        if collectives.rank() == 0:
            index = faiss.IndexFlatIP(rows.shape[1])
            index.add(rows)
            # Each row finds itself first.
            found[:] = [index.search(rows, k + 1)[1][:, 1:]]
        collectives.barrier()

    seconds = seconds_of(search, repeats)
    agreement = 1.0
    if collectives.rank() == 0:
        agreement = float(np.mean([np.isin(ours, theirs).mean() for ours, theirs in zip(lists, found[0])]))
    return seconds, agreement
