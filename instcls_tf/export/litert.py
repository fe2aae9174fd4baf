"""The encoder as a LiteRT (TensorFlow Lite) file, from whole uint8 images of any size, in built-in operations alone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import tensorflow as tf

from instcls_tf.export.portable import IMAGES, portable_function
from instcls_tf.export.subject import Subject
from instcls_tf.export.writing import Format

_USE = """
```python
from ai_edge_litert.interpreter import Interpreter  # or tf.lite.Interpreter

embed = Interpreter("{folder}/model.tflite").get_signature_runner()
outputs = embed(images=images)  # uint8 [b, h, w, 3] of any size -> features, projection
```
"""


def _write(subject: Subject, folder: str) -> None:
    graph = portable_function(subject).get_concrete_function(IMAGES)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], subject.encoder)
    with _quiet():
        content = converter.convert()
    with open(os.path.join(folder, "model.tflite"), "wb") as file:
        file.write(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the converter's statistics, which no setting turns off, from standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


LITERT = Format("litert", _write, _USE, any_size=True)
