"""Views by compiled kernels, in a fraction of the time of TensorFlow's operations, for CPUs.

The kernels compute what `resizing.py` and `view_layers.py` do, to float32 rounding; tests hold both against Pillow and
NumPy.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from instcls_tf.compiler import Library

# Sums may be taken in any order, for vectors; bfloat16 is of no use here.
LIBRARY = Library(
    Path(__file__).parent,
    "views",
    flags=("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
    left_out=("kAvx512Bf16Kernels",),
)


@functools.cache
def operations() -> Any:
    """`InstclsCropViews`, `InstclsColourViews` and `InstclsBlurViews`; None where they were not compiled."""
    if not LIBRARY.path.exists():
        return None
    import tensorflow as tf

    return tf.load_op_library(str(LIBRARY.path))
