"""The passes of `softmax.py` by the compiled kernels: one operation each, for CPUs.

The kernels do the work of a tile (products, exp, sums, labels, SGD) while it is in the caches of a core; TensorFlow's
operations write and read each of these to memory. They compute the same to float32 rounding; tests hold both
against the dense reference.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from instcls_tf.classifier import tiles
from instcls_tf.classifier.directions import SMALLEST_NORM
from instcls_tf.classifier.kernels import streamed_softmax
from instcls_tf.classifier.local_classes import LocalClasses, Sgd
from instcls_tf.classifier.softmax import Batch, PartialSums, Shift, Softmax, Totals
from instcls_tf.config import CROSS_ENTROPY


@functools.cache
def _operations() -> Any:
    path = streamed_softmax.LIBRARY.path
    return tf.load_op_library(str(path)) if path.exists() else None


def available() -> bool:
    """Whether the kernels were compiled and this worker computes on a CPU."""
    return not tf.config.list_physical_devices("GPU") and _operations() is not None


def usable_kernels() -> list[str]:
    """The kernels that this processor can run (`avx512`, `avx2`, …), the fastest first; empty without any."""
    return [name.decode() for name in _operations().InstclsUsableKernels().numpy()] if available() else []


class CompiledPasses:
    """`softmax.Passes` by the kernels, which move class weights and momentum in place.

    Args:
      classes: this worker's.
      softmax: which one.
      kernels: which of `usable_kernels()`; empty for the fastest.
      tile_classes: classes of a tile; None for as many as suit the caches.
    """

    def __init__(self, classes: LocalClasses, softmax: Softmax, kernels: str = "", tile_classes: int | None = None):
        self._classes, self._needs_shift = classes, softmax.needs_shift
        self._attributes = {
            "temperature": softmax.temperature,
            "cross_entropy": softmax.smoothing_loss == CROSS_ENTROPY,
            "products_dtype": softmax.products_dtype,
            "smallest_norm": SMALLEST_NORM,
            "tile_classes": tile_classes or tiles.kernel_tile_classes(classes.embedding_size),
            "kernels": kernels,
        }

    def local_maxima(self, batch: Batch) -> Shift | None:
        """The largest logit of each row, over all streamed classes and over its targets: an extra pass for small tau.

        Returns:
          -inf where this worker has none.
        """
        if not self._needs_shift:
            return None
        return Shift(*_operations().InstclsMaximaPass(**self._inputs(batch), **self._attributes))

    def forward(self, batch: Batch) -> PartialSums:
        """Streams this worker's classes once (steps 3 and 4)."""
        return PartialSums(
            *_operations().InstclsForwardPass(**self._inputs(batch), **_shift(batch), **self._attributes)
        )

    def backward(self, batch: Batch, totals: Totals, sgd: Sgd) -> None:
        """Streams the classes again and moves them (steps 6 and 8)."""
        _operations().InstclsBackwardPass(
            **self._inputs(batch),
            **_shift(batch),
            momentum=self._classes.momentum.values.handle,
            momentum_scales=_handles(self._classes.momentum.scales),
            exp_sum=totals.exp_sum,
            target_sum=totals.target_sum,
            learning_rate=sgd.learning_rate,
            seed=sgd.seed,
            momentum_factor=sgd.momentum_factor,
            weight_decay=sgd.weight_decay,
            first_class=self._classes.first,
            **self._attributes,
        )

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        return {
            "weights": self._classes.weights.values.handle,
            "weight_scales": _handles(self._classes.weights.scales),
            "streamed": tf.constant(0) if batch.streamed is None else batch.streamed,  # a scalar stands for all
            "embeddings": batch.embeddings,
            "target_row": batch.targets.row,
            "target_column": batch.targets.column,
            "target_label": batch.targets.label,
            "target_is_own": batch.targets.is_own,
        }


def _shift(batch: Batch) -> dict[str, tf.Tensor]:
    logits, targets = Shift(tf.zeros([0]), tf.zeros([0])) if batch.shift is None else batch.shift
    return {"shift_logits": logits, "shift_targets": targets}


def _handles(variable: tf.Variable | None) -> list[tf.Tensor]:
    return [] if variable is None else [variable.handle]
