"""The batches that workers give to the rivals' losses, and the references to theirs: the same numbers on both sides."""

from __future__ import annotations

import numpy as np

NUM_INSTANCES = 23
SIZE = 8
STEPS = 9
SINGLE, REPEATED, LAST_ONLY, EMPTY = 2, 4, 5, 6  # steps of a kind of their own


def centers() -> np.ndarray:
    """`[N, D]` where the instances' embeddings lie."""
    return np.random.default_rng(1).normal(size=[NUM_INSTANCES, SIZE])


def batch(step: int, views: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The global batch of a step: embeddings `[B, D]` float32 of different lengths, and ids `[B]` int32.

    Two or three workers never have equal shares of it. One step has a single instance, so that of three workers one has
    nothing; one has an instance twice; in one the last worker has everything; one has no rows at all.
    """
    random = np.random.default_rng(100 + step)
    instances = {SINGLE: 1, EMPTY: 0}.get(step, 5 + step % 2 * 2)
    ids = random.choice(NUM_INSTANCES, instances, replace=False)
    if step == REPEATED:
        ids[3] = ids[0]
    ids = np.repeat(ids, views)
    embeddings = centers()[ids] + 0.8 * random.normal(size=[len(ids), SIZE])
    return (embeddings * random.uniform(0.5, 2, [len(ids), 1])).astype(np.float32), ids.astype(np.int32)


def share(step: int, rows: int, rank: int, num_workers: int) -> slice:
    """The rows of the global batch that a worker has; the views of an instance need not be together."""
    if step == LAST_ONLY:
        return slice(0, rows if rank == num_workers - 1 else 0)
    cut = [0, rows] if num_workers == 1 else [0, rows // 4, *([rows // 2] * (num_workers - 2)), rows]
    return slice(cut[rank], cut[rank + 1])


def learning_rate(step: int) -> float:
    """Of weights that a method moves; it changes with every step."""
    return 0.5 / (1 + step % 4)


QUEUE = 17  # wraps around within a batch now and then
RECENT = 6


def keys() -> np.ndarray:
    """`[STEPS, N, D]` float32, the keys that MoCo's queries are to find."""
    rows = centers() + 0.5 * np.random.default_rng(2).normal(size=[STEPS, NUM_INSTANCES, SIZE])
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
