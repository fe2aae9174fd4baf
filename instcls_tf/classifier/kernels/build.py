"""Compiles the classifier's kernels and those of views: `python -m instcls_tf.classifier.kernels.build`.

Some ten seconds with g++; nothing is done when they are there already.
"""

from __future__ import annotations

from instcls_tf.classifier.kernels import streamed_softmax
from instcls_tf.data.kernels import views


def build() -> None:
    """Compiles what is missing.

    Raises:
      SystemExit: the processor is not known, or the compiler failed; its output has been printed.
    """
    streamed_softmax.LIBRARY.build()
    views.LIBRARY.build()


if __name__ == "__main__":
    build()
