"""What is known of images with boxes.

Boxes are kept as `(x0, y0, x1, y1)` on the continuous plane of the image, whose left upper corner is (0, 0): VOC counts
pixels from 1 and includes the last one, so `x0 = xmin - 1` and `x1 = xmax`. Overlaps of such boxes are those that the
VOC devkit computes with its "+ 1" (and Detectron2, which reads and writes the same way).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from instcls_tf.data.decoding import DEFAULT_READING, Reading


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What is known of one image of `height` x `width` pixels.

    `boxes` is float32 `[n, 4]`, `labels` int32 `[n]` (places in the split's `class_names`), `difficult` bool `[n]`.
    """

    name: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionSource:
    """One split. Either `paths` are the images' files (a folder) or `encoded` their bytes (TFDS), the other is None.

    `reading` says how the images become pixels, `notes` are lines for the user about what was changed in it.
    """

    class_names: tuple[str, ...]
    annotations: tuple[Annotation, ...]
    paths: tuple[str, ...] | None = None
    encoded: tuple[bytes, ...] | None = None
    reading: Reading = DEFAULT_READING
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """A hash of the classes, the images' names and sizes, and their objects."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for annotation in self.annotations:
            head = f"{annotation.name!r} {annotation.height} {annotation.width} {len(annotation.labels)}"
            digest.update(head.encode(errors="surrogateescape"))
            for values in (annotation.boxes, annotation.labels, annotation.difficult):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def reader(self) -> Callable[[Any], Any]:
        """A graph function from an image's place (int64 scalar) to its encoded bytes."""
        import tensorflow as tf

        # Outside the mapped function: a captured tensor is an input, a constant inside would enter the (2 GB) graph.
        if self.encoded is not None:
            encoded = tf.constant(self.encoded)
            return lambda index: encoded[index]
        paths = tf.constant([os.fsencode(path) for path in self.paths or ()])
        return lambda index: tf.io.read_file(paths[index])
