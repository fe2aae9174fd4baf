"""Instance classification with a sharded million-way softmax, for TensorFlow and Horovod.

Everything below loads on first use, so that a command can check its flags before TensorFlow is imported.
"""

import importlib

_HOMES = {
    "PretrainConfig": "config",
    "ShardedClassifier": "classifier",
    "UserError": "errors",
    "build_encoder": "networks",
    "hard_negatives": "hardest_classes",
    "knn_accuracy": "evaluation.knn",
    "load_encoder": "checkpoint",
    "pretrain": "pretraining",
    "projection_head": "networks",
    "resnet18": "networks",
    "resnet50": "networks",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return __all__
