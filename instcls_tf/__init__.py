"""Instance classification with a sharded million-way softmax, for TensorFlow and Horovod.

Pretrain on a folder of images, without labels, and use what comes out of it:

  import instcls_tf

  instcls_tf.pretrain(dataset="folder:/data/photos", workdir="runs/photos", preset="photos")
  features = instcls_tf.embed(["a.jpg", "b.jpg"], workdir="runs/photos")     # [2, F], in this order
  encoder = instcls_tf.load_encoder("runs/photos")                           # a Keras model, to be fine-tuned
  projections = encoder(images)                                              # [b, H, W, 3] in 0..255 -> [b, D]
  features = encoder.get_layer("backbone")(images)                           # [b, F]

Recipes (settings have the names of the command's flags):

  config = instcls_tf.PretrainConfig.from_flagfile("small_images", workdir="runs/a", dataset="folder:/data/small")
  instcls_tf.pretrain(config, epochs=40)
  instcls_tf.pretrain(init="resnet50.safetensors", dataset="folder:/data/photos", workdir="runs/b")

The parts:

  pretrain             a run, or more of it; goes on where the run in its workdir has ended
  PretrainConfig       a recipe: every setting and its default; from_flagfile(path_or_preset)
  embed                features of image files
  Index                Index.of_run("runs/photos").search("a.jpg", k=20)[0]: what looks alike, names and cosines
  load_encoder         the network of a run
  knn_accuracy         knn_accuracy(train_features, train_labels, test_features, test_labels)["top1"]
  ShardedClassifier    ShardedClassifier(1_000_000, smoothing=0.0)(embeddings, instance_ids, learning_rate=0.1).loss
  HardNegatives        what it is called with when it smooths: HardNegatives(classifier, k), after its refresh()
  hard_negatives       hard_negatives(classifier, k): of each class the k with the most similar weights
  init                 joins the workers that mpirun or horovodrun has started: first in a script of your own
  build_encoder        build_encoder(encoder="resnet18", stem="small"): backbone and projection head
  resnet50, resnet18   backbones, with torchvision's layers and padding; resnet10 has one block a stage
  projection_head      projection_head(512, 128): features to embeddings
  UserError            what is raised for a wrong setting, file or folder: one sentence

Each loads on first use, so that a command can check its flags before TensorFlow is imported.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; a test compares it with the homes below
    from instcls_tf.classifier.hard_negatives import HardNegatives, hard_negatives
    from instcls_tf.classifier.sharded_classifier import ShardedClassifier
    from instcls_tf.config import PretrainConfig
    from instcls_tf.distributed.workers import init
    from instcls_tf.encoder.networks import build_encoder, projection_head, resnet10, resnet18, resnet50
    from instcls_tf.errors import UserError
    from instcls_tf.evaluation.embed import embed
    from instcls_tf.evaluation.knn import knn_accuracy
    from instcls_tf.pretraining.pretrain import pretrain
    from instcls_tf.run.encoder import load_encoder
    from instcls_tf.search.index import Index

    __version__: str

# Read when TensorFlow is imported. On processors without AVX512_VNNI it leaves oneDNN's convolutions and allocator out,
# and steps take far longer; elsewhere this is its default.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# That allocator reserves regions whose sizes are powers of two, and counts them in full against the physical memory,
# unless told otherwise: two arrays of 10 GB would not fit into 24 GB. What is only reserved takes no memory.
os.environ.setdefault("TF_MKL_ALLOC_MAX_BYTES", str(2**46))
if sys.version_info >= (3, 12):
    # Newer TensorFlows have Keras 3; the project is written for Keras 2, which tf_keras is there. TensorFlow looks for
    # this when it is imported, and when `tf.keras` is first used.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    if "tensorflow" in sys.modules:
        sys.modules.setdefault("tensorflow.keras", importlib.import_module("tf_keras.api._v2.keras"))

_HOMES = {
    "HardNegatives": "classifier.hard_negatives",
    "Index": "search.index",
    "PretrainConfig": "config",
    "ShardedClassifier": "classifier.sharded_classifier",
    "UserError": "errors",
    "build_encoder": "encoder.networks",
    "embed": "evaluation.embed",
    "hard_negatives": "classifier.hard_negatives",
    "init": "distributed.workers",
    "knn_accuracy": "evaluation.knn",
    "load_encoder": "run.encoder",
    "pretrain": "pretraining.pretrain",
    "projection_head": "encoder.networks",
    "resnet10": "encoder.networks",
    "resnet18": "encoder.networks",
    "resnet50": "encoder.networks",
}
__all__ = [
    "HardNegatives",
    "Index",
    "PretrainConfig",
    "ShardedClassifier",
    "UserError",
    "build_encoder",
    "embed",
    "hard_negatives",
    "init",
    "knn_accuracy",
    "load_encoder",
    "pretrain",
    "projection_head",
    "resnet10",
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
