"""The encoder as an ONNX file, from whole uint8 images of any size to features and projections."""

from __future__ import annotations

import os
from typing import Any

from instcls_tf.export.portable import IMAGES, portable_function
from instcls_tf.export.subject import Subject
from instcls_tf.export.writing import Format

NEEDED = ("tf2onnx", "onnx", "onnxruntime")  # the converter, and the runtime that checks it
_OPSET = 17  # of 2022: old runtimes read it, and nothing here needs a later one
_AXES = ("batch", "height", "width")

USE = """
```python
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
features, projection = session.run(["features", "projection"], {{"images": images}})  # uint8 [b, h, w, 3] of any size
```
"""


def write(subject: Subject, folder: str) -> None:
    """Writes `FOLDER/model.onnx`, and has it checked."""
    import onnx
    import tf2onnx

    embed = portable_function(subject)
    model, _ = tf2onnx.convert.from_function(embed, input_signature=[IMAGES], opset=_OPSET)
    _name_axes(model)
    # The converter only logs what it cannot convert, and writes a file that no runtime takes.
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, os.path.join(folder, "model.onnx"))


def _name_axes(model: Any) -> None:
    (images,) = model.graph.input
    for dimension, name in zip(images.type.tensor_type.shape.dim, _AXES):
        dimension.dim_param = name
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = _AXES[0]


ONNX = Format("onnx", write, USE, any_size=True, needed=NEEDED)
