"""The names of weights in torchvision and in Detectron2. No TensorFlow."""

from __future__ import annotations

import re

# Keras' BN variables and PyTorch's.
_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_BLOCK = re.compile(r"layer(\d)_(\d+)_(.+)")
_PARTS = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}


def of_layer(layer: str, variable: str) -> str:
    """`layer1_0_downsample_bn`, `gamma` to torchvision's `layer1.0.downsample.1.weight`."""
    found = _BLOCK.fullmatch(layer)
    place = f"layer{found[1]}.{found[2]}.{_PARTS.get(found[3], found[3])}" if found else layer
    return f"{place}.{_BATCH_NORM.get(variable, 'weight')}"


def to_detectron2(name: str) -> str:
    """torchvision's name to that of MoCo's converter: `layer1.0.bn1.weight` to `res2.0.conv1.norm.weight`."""
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def of_detectron2(name: str) -> str:
    """The inverse of `to_detectron2`."""
    name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    name = re.sub(r"res(\d)", lambda found: f"layer{int(found[1]) - 1}", name)
    return name.removeprefix("stem.")
