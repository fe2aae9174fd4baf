"""The cases that workers train and the dense reference repeats: the same numbers on both sides."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NUM_INSTANCES = 101
EMBEDDING_SIZE = 16
NUM_HARD_NEGATIVES = 7
CANDIDATES = 40  # per block: three blocks travel, which shards do not end with
STEPS = 20
LISTS_EVERY = 10
LEARNING_RATE = 0.7
# Instances per BN group: 3 to 4 groups a batch, the last one smaller, and a single one in step 7.
MICRO_BATCH = 4


class Case(NamedTuple):
    temperature: float = 0.15
    smoothing: float = 0.2
    smoothing_loss: str = "marginal"
    sampled_classes: int = 0
    tile_classes: int = 8  # so that tiles and shards do not end together
    lists_row_by_row: bool = False  # hard negatives are given as [b, K] instead of the lists of all classes
    compiled: bool = True  # by the compiled kernels, else by TensorFlow's own operations
    xla: bool = False  # these with XLA
    weights_dtype: str = "float32"
    momentum_dtype: str = "float32"


CASES = {
    "eq1": Case(smoothing=0.0),
    "eq1_as_cross_entropy": Case(smoothing=0.0, smoothing_loss="cross_entropy"),
    "marginal": Case(),
    "cross_entropy": Case(smoothing_loss="cross_entropy"),
    "portable_eq1": Case(smoothing=0.0, compiled=False),
    "portable_marginal": Case(compiled=False),
    "portable_cross_entropy": Case(smoothing_loss="cross_entropy", compiled=False),
    "portable_one_tile": Case(tile_classes=256, compiled=False),
    "portable_sampled": Case(smoothing=0.0, sampled_classes=60, compiled=False),
    "portable_sampled_few": Case(smoothing=0.0, sampled_classes=7, compiled=False),
    "portable_lists_row_by_row": Case(lists_row_by_row=True, compiled=False),
    "xla_marginal": Case(compiled=False, xla=True),
    "xla_sampled_few": Case(smoothing=0.0, sampled_classes=7, compiled=False, xla=True),
    "xla_cold_cross_entropy": Case(temperature=0.01, smoothing_loss="cross_entropy", compiled=False, xla=True),
    "portable_cold_marginal": Case(temperature=0.01, compiled=False),
    "portable_cold_cross_entropy": Case(temperature=0.01, smoothing_loss="cross_entropy", compiled=False),
    "portable_cold_sampled": Case(temperature=0.01, smoothing=0.0, sampled_classes=7, compiled=False),
    "cold_marginal": Case(temperature=0.01),
    "cold_cross_entropy": Case(temperature=0.01, smoothing_loss="cross_entropy"),
    "cold_sampled": Case(temperature=0.01, smoothing=0.0, sampled_classes=7),
    "sampled": Case(smoothing=0.0, sampled_classes=60),
    "sampled_few": Case(smoothing=0.0, sampled_classes=7),  # fewer than own classes; some workers stream none
    "sampled_one": Case(smoothing=0.0, sampled_classes=1, smoothing_loss="cross_entropy"),
}
# Of rows that are rounded in each step: compared step by step, each from what the one before has stored.
ROUNDED_CASES = {
    "int8": Case(weights_dtype="int8", momentum_dtype="int8"),
    "portable_int8": Case(weights_dtype="int8", momentum_dtype="int8", compiled=False),
    "int8_weights": Case(smoothing=0.0, weights_dtype="int8", momentum_dtype="bfloat16"),
}


def weights() -> np.ndarray:
    """`[N, D]` float32 rows of different lengths."""
    random = np.random.default_rng(1)
    rows = random.normal(size=[NUM_INSTANCES, EMBEDDING_SIZE]) * random.uniform(0.5, 2.0, [NUM_INSTANCES, 1])
    return rows.astype(np.float32)


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """The global batch of a step: embeddings `[B, D]` float32 near their own rows, and ids `[B]`, two rows each.

    B varies, is not divisible by 2 or 3 as a rule, and is 2 (one instance) in step 7: some workers have nothing then.
    """
    random = np.random.default_rng(100 + step)
    instances = 1 if step == 7 else 11 + step % 3
    ids = np.repeat(random.choice(NUM_INSTANCES, instances, replace=False), 2)
    # The last class of all and the first are always there: the outer edges of the outer shards.
    if step != 7:
        ids[:2], ids[-2:] = 0, NUM_INSTANCES - 1
    noise = random.normal(size=[len(ids), EMBEDDING_SIZE])
    return (0.6 * weights()[ids] + noise).astype(np.float32), ids.astype(np.int32)
