"""Which implementation computes the two passes of a step: `--class_passes`."""

from __future__ import annotations

import functools

from instcls_tf.classifier.kernels import passes
from instcls_tf.classifier.kernels.passes import CompiledPasses
from instcls_tf.classifier.local_classes import LocalClasses
from instcls_tf.classifier.portable_passes import PortablePasses
from instcls_tf.classifier.softmax import MakePasses, Passes, Softmax
from instcls_tf.config import AUTO, OPERATIONS, XLA


def passes_of(name: str) -> MakePasses:
    """What makes the passes of this name, one of `config.CLASS_PASSES`."""
    return _MAKERS[name]


def fastest_passes(classes: LocalClasses, softmax: Softmax) -> Passes:
    """The compiled kernels where they are there."""
    return (CompiledPasses if passes.available() else PortablePasses)(classes, softmax)


def name_of(make_passes: MakePasses) -> str:
    """The name under which `passes_of` finds it; `auto` for what is none of these: all compute the same."""
    return next((name for name, maker in _MAKERS.items() if maker is make_passes), AUTO)


_MAKERS: dict[str, MakePasses] = {
    AUTO: fastest_passes,
    OPERATIONS: PortablePasses,
    XLA: functools.partial(PortablePasses, xla=True),
}
