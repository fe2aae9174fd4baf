"""What the classifier's benchmark measures. No TensorFlow, so that a mistake is answered at once."""

from __future__ import annotations

import dataclasses

from instcls_tf.checks import require, require_above_zero, require_one_of
from instcls_tf.config import CHOICES, INSTANCE, TEMPERATURES, PretrainConfig
from instcls_tf.plan import answer
from instcls_tf.report.answer import GIGABYTE

# The --dataset of `benchmark step` that is no dataset.
SYNTHETIC = "synthetic"

# What is compared, and what it is called in texts and pictures.
SHARDED, DATA_PARALLEL = "sharded", "data_parallel"
DESIGNS = {DATA_PARALLEL: answer.DATA_PARALLEL, SHARDED: answer.SHARDED}

# B of one worker's share, where it is not given: the paper's batch of 4,096 instances, whatever T is.
SHARE_ROWS = PretrainConfig.batch_size * PretrainConfig.views

# N of a step before what is measured: what any first step brings along is no memory of the classifier.
WARM_UP_INSTANCES = 8192


@dataclasses.dataclass(frozen=True)
class ClassifierBenchmark:
    """What is measured: N classes, B rows of the global batch, D columns, K hard negatives, alpha, tau, timed steps.

    With `as_worker_of` the share of one of so many workers is, by itself.
    """

    num_instances: int = 262_144
    batch_rows: int = 1024
    embedding_size: int = PretrainConfig.embedding_size
    hard_negatives: int = PretrainConfig.hard_negatives
    smoothing: float = PretrainConfig.smoothing
    temperature: float = TEMPERATURES[INSTANCE]
    class_weights_dtype: str = PretrainConfig.class_weights_dtype
    class_momentum_dtype: str = PretrainConfig.class_momentum_dtype
    class_products_dtype: str = PretrainConfig.class_products_dtype
    class_passes: str = PretrainConfig.class_passes
    repeats: int = 5
    plain: bool = True
    bare: bool = True
    as_worker_of: int = 0

    def workers_of(self, num_workers: int) -> int:
        """T of what is measured.

        Args:
          num_workers: those that are there.
        """
        return self.as_worker_of or num_workers

    def validate(self, num_workers: int = 1) -> None:
        """Raises UserError for a value that cannot be measured."""
        for name in ("num_instances", "embedding_size", "repeats"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("class_weights_dtype", "class_momentum_dtype", "class_products_dtype", "class_passes"):
            require_one_of(self, name, CHOICES[name])
        is_share = self.as_worker_of == 0 or self.as_worker_of >= 2
        require(self, "as_worker_of", is_share, "at least 2 workers, or 0 for those that are there")
        is_alone = not self.as_worker_of or num_workers == 1
        require(self, "as_worker_of", is_alone, f"0 under a launcher of {num_workers} workers: one stands for all")
        num_workers = self.workers_of(num_workers)
        for name in ("batch_rows", "num_instances"):
            require(self, name, getattr(self, name) >= num_workers, f"at least the {num_workers} workers")
        require_above_zero(self, "temperature")
        require(self, "smoothing", 0 <= self.smoothing < 1, "0 or more and below 1")
        if self.smoothing:
            in_range = 1 <= self.hard_negatives < self.num_instances
            require(self, "hard_negatives", in_range, f"at least 1 and below --num_instances={self.num_instances}")


def misfit(needed: int, free: int) -> str:
    """What is said of what does not fit, from bytes of a worker."""
    return f"does not fit: needs {needed / GIGABYTE:.1f} GB of {free / GIGABYTE:.1f} GB free"
