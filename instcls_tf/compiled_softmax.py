"""The two passes of `softmax.py` by the compiled kernels: one operation each, for CPUs.

The kernels do the work of a tile (products, exp, sums, labels, SGD) while it is in the caches of a core; TensorFlow's
operations write and read each of these to memory. They compute the same to float32 rounding; tests hold both
against the dense reference.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from instcls_tf import classifier_sizes, softmax
from instcls_tf.kernels import build
from instcls_tf.labels import Targets

# Which of `usable_kernels()` run: empty for the fastest.
KERNELS = ""


@functools.cache
def _operations():
    path = build.library_path()
    return tf.load_op_library(str(path)) if path.exists() else None


def available() -> bool:
    """Whether the kernels were compiled and this worker computes on a CPU."""
    return not tf.config.list_physical_devices("GPU") and _operations() is not None


def usable_kernels() -> list[str]:
    """The kernels that this processor can run (`avx512`, `avx2`, …), the fastest first; empty without any."""
    return [name.decode() for name in _operations().InstclsUsableKernels().numpy()] if available() else []


@tf.autograph.experimental.do_not_convert
def forward_pass(
    rows: tf.Variable,
    streamed: tf.Tensor | None,
    embeddings: tf.Tensor,
    targets: Targets,
    temperature: float,
    smoothing_loss: str,
    products_dtype: tf.DType = tf.float32,
) -> softmax.PartialSums:
    """As `softmax.forward_pass` without a shift.

    Args:
      rows: `[num_local, D]` float32 or bfloat16, the class weights.
      streamed: `[n]` int32, which of them take part, or None for all.
      embeddings: `[B, D]` float32, L2-normalised.
      targets: the labels on the streamed classes.
      temperature: tau, at least `softmax.SMALLEST_UNSHIFTED_TEMPERATURE`.
      smoothing_loss: `marginal` or `cross_entropy`.
      products_dtype: float32 or bfloat16, of the factors of matrix products; their sums are float32.
    """
    stream = _stream(rows, streamed, embeddings, targets, temperature, smoothing_loss, products_dtype)
    sums = _operations().InstclsForwardPass(**stream)
    return softmax.PartialSums(*sums)


@tf.autograph.experimental.do_not_convert
def backward_pass(
    rows: tf.Variable,
    momentum: tf.Variable,
    streamed: tf.Tensor | None,
    embeddings: tf.Tensor,
    targets: Targets,
    exp_sum: tf.Tensor,
    target_sum: tf.Tensor,
    temperature: float,
    smoothing_loss: str,
    products_dtype: tf.DType = tf.float32,
    *,
    learning_rate: tf.Tensor,
    momentum_factor: float,
    weight_decay: float,
    first_class: int,
    seed: tf.Tensor,
) -> tf.Operation:
    """As `softmax.backward_pass` with `optimizer.momentum_update`: moves class weights and momentum in place.

    Args:
      rows: as in `forward_pass`.
      momentum: `[num_local, D]` float32 or bfloat16.
      streamed: as in `forward_pass`.
      embeddings: as in `forward_pass`.
      targets: as in `forward_pass`.
      exp_sum: `[B]`, complete over all workers.
      target_sum: `[B]`, complete over all workers.
      temperature: tau.
      smoothing_loss: `marginal` or `cross_entropy`.
      products_dtype: as in `forward_pass`.
      learning_rate: scalar float32.
      momentum_factor: of SGD.
      weight_decay: L2 coefficient.
      first_class: the id of local class 0.
      seed: scalar int32, of the rounding to bfloat16, see `storage.py`.
    """
    return _operations().InstclsBackwardPass(
        **_stream(rows, streamed, embeddings, targets, temperature, smoothing_loss, products_dtype),
        momentum=momentum.handle,
        exp_sum=exp_sum,
        target_sum=target_sum,
        learning_rate=learning_rate,
        seed=seed,
        momentum_factor=momentum_factor,
        weight_decay=weight_decay,
        first_class=first_class,
    )


def _stream(rows, streamed, embeddings, targets, temperature, smoothing_loss, products_dtype) -> dict:
    return {
        "rows": rows.handle,
        "streamed": tf.constant(0) if streamed is None else streamed,  # a scalar stands for all
        "embeddings": embeddings,
        "target_row": targets.row,
        "target_column": targets.column,
        "target_label": targets.label,
        "target_is_own": targets.is_own,
        "temperature": temperature,
        "cross_entropy": smoothing_loss == softmax.CROSS_ENTROPY,
        "tile_classes": classifier_sizes.kernel_tile_classes(rows.shape[1]),
        "products_dtype": products_dtype,
        "kernels": KERNELS,
    }
