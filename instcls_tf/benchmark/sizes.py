"""What the classifier's benchmark measures. No TensorFlow, so that a mistake is answered at once."""

from __future__ import annotations

import dataclasses

from instcls_tf.config import CLASS_DTYPES, PretrainConfig
from instcls_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClassifierBenchmark:
    """What is measured: N classes, B rows of the global batch, D columns, K hard negatives, alpha, timed steps."""

    num_instances: int = 262_144
    batch_rows: int = 1024
    embedding_size: int = PretrainConfig.embedding_size
    hard_negatives: int = PretrainConfig.hard_negatives
    smoothing: float = PretrainConfig.smoothing
    class_weights_dtype: str = PretrainConfig.class_weights_dtype
    class_momentum_dtype: str = PretrainConfig.class_momentum_dtype
    class_products_dtype: str = PretrainConfig.class_products_dtype
    repeats: int = 5
    plain: bool = True
    bare: bool = True

    def validate(self, num_workers: int = 1) -> None:
        """Raises UserError for a value that cannot be measured."""
        for name in ("num_instances", "embedding_size", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least 1")
        for name in ("class_weights_dtype", "class_momentum_dtype", "class_products_dtype"):
            if getattr(self, name) not in CLASS_DTYPES:
                raise UserError(f"--{name}={getattr(self, name)}: must be one of {', '.join(CLASS_DTYPES)}")
        if self.batch_rows < num_workers:
            raise UserError(f"--batch_rows={self.batch_rows}: must be at least the {num_workers} workers")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"--smoothing={self.smoothing}: must be 0 or more and below 1")
        if self.smoothing and not 1 <= self.hard_negatives < self.num_instances:
            raise UserError(
                f"--hard_negatives={self.hard_negatives}: must be at least 1 and below"
                f" --num_instances={self.num_instances}"
            )
