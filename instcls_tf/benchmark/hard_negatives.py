"""The exact search for hard negatives against FAISS's exact flat index on the same class weights and cores."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import tensorflow as tf

from instcls_tf.benchmark.timing import seconds_of
from instcls_tf.checks import require_value
from instcls_tf.classifier.hard_negatives import hard_negatives
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError


def measure_hard_negatives(num_instances: int, embedding_size: int, k: int, repeats: int) -> dict[str, float]:
    """All workers together, then FAISS on rank 0 with the cores of all of them, which have left by then.

    Args:
      num_instances: N.
      embedding_size: D.
      k: K.
      repeats: searches that are timed, of each.

    Returns:
      On rank 0 `seconds`, `faiss_seconds`, `ratio_to_faiss`, `faiss_threads`, `agreement` (the share of equal list
      members) and `workers`; nothing elsewhere.
    """
    for name, value in (("embedding_size", embedding_size), ("hard_negatives", k), ("repeats", repeats)):
        require_value(name, value, value >= 1, "at least 1")
    require_value("num_instances", num_instances, num_instances > k, f"above --hard_negatives={k}")
    if importlib.util.find_spec("faiss") is None:
        raise UserError("benchmark hard_negatives: needs faiss-cpu: pip install 'instcls-tf[benchmark]'")
    workers.start()
    layer = ShardedClassifier(num_instances, embedding_size)
    layer.initialize_gaussian()
    seconds = seconds_of(lambda: hard_negatives(layer, k).numpy(), repeats)
    weights = collectives.all_gather(tf.convert_to_tensor(layer.local_weights), "all_weights").numpy()
    lists = collectives.all_gather(hard_negatives(layer, k), "all_lists").numpy()
    cores = set(collectives.all_gather(tf.constant(sorted(os.sched_getaffinity(0))), "cores").numpy().tolist())
    num_workers, is_chief = collectives.size(), collectives.rank() == 0
    # Workers that waited would look for messages all the time, on cores that FAISS is to have for itself.
    collectives.leave()
    if not is_chief:
        return {}
    faiss_seconds, agreement = _faiss(weights, lists, k, repeats, cores)
    return {
        "workers": num_workers,
        "num_instances": num_instances,
        "seconds": seconds,
        "faiss_seconds": faiss_seconds,
        "ratio_to_faiss": seconds / faiss_seconds,
        "faiss_threads": len(cores),
        "agreement": agreement,
    }


def _faiss(weights: np.ndarray, lists: np.ndarray, k: int, repeats: int, cores: set[int]) -> tuple[float, float]:
    """Median seconds of FAISS's exact search on some cores, and the share of its list members that are in `lists`."""
    os.sched_setaffinity(0, cores)  # a launcher may have bound this worker to some of them
    import faiss

    faiss.omp_set_num_threads(len(cores))
    weights = np.ascontiguousarray(weights / np.linalg.norm(weights, axis=1, keepdims=True))
    found: list[np.ndarray] = []

    def search() -> None:
        index = faiss.IndexFlatIP(weights.shape[1])
        index.add(weights)
        # Each class finds itself first.
        found[:] = [index.search(weights, k + 1)[1][:, 1:]]

    seconds = seconds_of(search, repeats)
    return seconds, float(np.mean([np.isin(ours, theirs).mean() for ours, theirs in zip(lists, found[0])]))
