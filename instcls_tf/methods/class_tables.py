"""Class weights and momentum in a checkpoint, in float32 whatever they were kept in."""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.classifier import int8_rows
from instcls_tf.run.parts import spec_of_rows


def scales_key(key: str) -> str:
    """The name of the scales of a tensor of int8."""
    return f"{key}_scales"


def read_rows(prefix: str, key: str, begin: int, end: int) -> tf.Tensor:
    """Some rows of a checkpoint's class weights or momentum, `[end - begin, D]` float32; nothing else is read.

    Args:
      prefix: of the checkpoint.
      key: the tensor's name in it.
      begin: the first row.
      end: the one behind the last.
    """
    reader = tf.train.load_checkpoint(prefix)
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()

    def read(name: str) -> tf.Tensor:
        spec = spec_of_rows(shapes[name], begin, end)
        about = {"prefix": prefix, "tensor_names": [name], "shape_and_slices": [spec], "dtypes": [dtypes[name]]}
        return tf.raw_ops.RestoreV2(**about)[0]

    if scales_key(key) in shapes:
        return int8_rows.values_of(read(key), read(scales_key(key)))
    return tf.cast(read(key), tf.float32)
