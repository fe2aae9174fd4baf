"""The ONNX file with the weights of its convolutions as 8-bit integers: a third of the size, slower on most CPUs."""

from __future__ import annotations

import os

from instcls_tf.export import onnx_model
from instcls_tf.export.subject import Subject
from instcls_tf.export.writing import Format

_LEAST_COSINE = 0.99


def _write(subject: Subject, folder: str) -> None:
    onnx_model.write(subject, folder)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = os.path.join(folder, "model.onnx")
    whole = os.path.join(folder, "float32.onnx")
    os.replace(path, whole)
    # The matrix products that resize are not to be rounded; onnxruntime runs no signed integers in convolutions.
    quantize_dynamic(whole, path, op_types_to_quantize=["Conv"], weight_type=QuantType.QUInt8)
    os.remove(whole)


ONNX_INT8 = Format(
    "onnx_int8", _write, onnx_model.USE, any_size=True, least_cosine=_LEAST_COSINE, needed=onnx_model.NEEDED
)
