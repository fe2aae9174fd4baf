"""The library of the classifier's kernels: what it is made from, and where it belongs. No TensorFlow."""

from __future__ import annotations

from pathlib import Path

from instcls_tf.compiler import Library

LIBRARY = Library(Path(__file__).parent, "streamed_softmax")
