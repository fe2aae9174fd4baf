"""The formats by the words of `--format`."""

from __future__ import annotations

from instcls_tf.export.detectron2 import DETECTRON2
from instcls_tf.export.litert import LITERT
from instcls_tf.export.onnx_int8 import ONNX_INT8
from instcls_tf.export.onnx_model import ONNX
from instcls_tf.export.saved_model import SAVED_MODEL
from instcls_tf.export.torchvision import TORCHVISION
from instcls_tf.export.writing import Format

_ALL = (SAVED_MODEL, ONNX, ONNX_INT8, LITERT, TORCHVISION, DETECTRON2)
FORMATS: dict[str, Format] = {form.name: form for form in _ALL}
