"""The exact search for hard negatives against FAISS's exact flat index on the same class weights and cores."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import tensorflow as tf

from instcls_tf.benchmark import fitting
from instcls_tf.benchmark.timing import seconds_of
from instcls_tf.checks import require_value
from instcls_tf.classifier.hard_negatives import hard_negatives
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError
from instcls_tf.plan import classifier_bytes
from instcls_tf.report.answer import Answer

_OF_FAISS = ("faiss_seconds", "ratio_to_faiss", "faiss_threads", "agreement")


def measure_hard_negatives(num_instances: int, embedding_size: int, k: int, repeats: int) -> Answer:
    """All workers together, then FAISS on rank 0 with the cores of all of them, which have left by then.

    Args:
      num_instances: N.
      embedding_size: D.
      k: K.
      repeats: searches that are timed, of each.

    Returns:
      On rank 0 `seconds`, `faiss_seconds`, `ratio_to_faiss`, `faiss_threads`, `agreement` (the share of equal list
      members) and `workers`, those of FAISS None where it does not fit into the free memory; nothing elsewhere.

    Raises:
      UserError: a size is out of range, FAISS is not there, or not even the own search fits.
    """
    for name, value in (("embedding_size", embedding_size), ("hard_negatives", k), ("repeats", repeats)):
        require_value(name, value, value >= 1, "at least 1")
    require_value("num_instances", num_instances, num_instances > k, f"above --hard_negatives={k}")
    if importlib.util.find_spec("faiss") is None:
        raise UserError("benchmark hard_negatives: needs faiss-cpu: pip install 'instcls-tf[benchmark]'")
    workers.start()
    sizes = (num_instances, collectives.size())
    state = sum(classifier_bytes.classifier_bytes(*sizes, 1, embedding_size).values())
    fitting.refuse("hard_negatives", state + classifier_bytes.search_bytes(*sizes, embedding_size, k))
    layer = ShardedClassifier(num_instances, embedding_size)
    seconds = seconds_of(lambda: hard_negatives(layer, k).numpy(), repeats)
    result = {"workers": collectives.size(), "num_instances": num_instances, "seconds": seconds}
    is_chief = collectives.rank() == 0
    fit = fitting.look(_faiss_bytes(num_instances, embedding_size, k))
    if not fit.holds:
        text = f"this design: {seconds:.3g} s\nFAISS: {fit}"
        return Answer({**result, **dict.fromkeys(_OF_FAISS)}, text) if is_chief else Answer({})
    weights = collectives.all_gather(tf.convert_to_tensor(layer.local_weights), "all_weights").numpy()
    lists = collectives.all_gather(hard_negatives(layer, k), "all_lists").numpy()
    cores = set(collectives.all_gather(tf.constant(sorted(os.sched_getaffinity(0))), "cores").numpy().tolist())
    # Workers that waited would look for messages all the time, on cores that FAISS is to have for itself.
    collectives.leave()
    if not is_chief:
        return Answer({})
    faiss_seconds, agreement = _faiss(weights, lists, k, repeats, cores)
    return Answer({**result, **dict(zip(_OF_FAISS, (faiss_seconds, seconds / faiss_seconds, len(cores), agreement)))})


def _faiss_bytes(num_instances: int, embedding_size: int, k: int) -> int:
    """What rank 0 has of all classes: weights, as directions, and in the index; lists, and what the index finds."""
    weights = 3 * num_instances * embedding_size * 4
    return weights + num_instances * (k + 1) * (4 + 3 * 8)  # ids of FAISS have 8 bytes, and are compared


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
