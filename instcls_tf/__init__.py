"""Instance classification with a sharded million-way softmax, for TensorFlow and Horovod.

Everything below loads on first use, so that a command can check its flags before TensorFlow is imported.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; a test compares it with the homes below
    from instcls_tf.classifier.hard_negatives import hard_negatives
    from instcls_tf.classifier.sharded_classifier import ShardedClassifier
    from instcls_tf.config import PretrainConfig
    from instcls_tf.encoder.networks import build_encoder, projection_head, resnet18, resnet50
    from instcls_tf.errors import UserError
    from instcls_tf.evaluation.knn import knn_accuracy
    from instcls_tf.pretraining.pretrain import pretrain
    from instcls_tf.run.encoder import load_encoder
    from instcls_tf.search.index import Index

    __version__: str

_HOMES = {
    "Index": "search.index",
    "PretrainConfig": "config",
    "ShardedClassifier": "classifier.sharded_classifier",
    "UserError": "errors",
    "build_encoder": "encoder.networks",
    "hard_negatives": "classifier.hard_negatives",
    "knn_accuracy": "evaluation.knn",
    "load_encoder": "run.encoder",
    "pretrain": "pretraining.pretrain",
    "projection_head": "encoder.networks",
    "resnet18": "encoder.networks",
    "resnet50": "encoder.networks",
}
__all__ = [
    "Index",
    "PretrainConfig",
    "ShardedClassifier",
    "UserError",
    "build_encoder",
    "hard_negatives",
    "knn_accuracy",
    "load_encoder",
    "pretrain",
    "projection_head",
    "resnet18",
    "resnet50",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _version() -> str:
    """The number of the installed package, or, in a clone that was never installed, of its pyproject.toml."""
    from importlib import metadata

    try:
        return metadata.version("instcls-tf")
    except metadata.PackageNotFoundError:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        (number,) = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)
        return number
