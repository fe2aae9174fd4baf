"""Compiles the classifier's kernels and those of views: `python -m instcls_tf.classifier.kernels.build`.

Some ten seconds with g++; nothing is done when they are there already.
"""

from __future__ import annotations

from pathlib import Path

from instcls_tf.compiler import Library
from instcls_tf.data.kernels import views

LIBRARY = Library(Path(__file__).parent, "streamed_softmax")


def build() -> None:
    """Compiles what is missing.

    Raises:
      SystemExit: the processor is not known, or the compiler failed; its output has been printed.
    """
    LIBRARY.build()
    views.LIBRARY.build()


if __name__ == "__main__":
    build()
