"""The backbone's weights for PyTorch: torchvision's names and layouts in a .safetensors file; timm reads it as well."""

from __future__ import annotations

import json
import os

import numpy as np
import tensorflow as tf

from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.export import tensor_file, torch_names
from instcls_tf.export.subject import Subject
from instcls_tf.export.writing import Format

_USE = """
```python
import torch, torchvision
from safetensors.torch import load_file

weights = load_file("{folder}/model.safetensors")  # a state dict; torch.save(weights, "model.pth") keeps it as one
model = torchvision.models.{architecture}()
model.fc = torch.nn.Identity()
model.load_state_dict(weights, strict=True)
```

```python
import timm

model = timm.create_model("{architecture}", num_classes=0)
model.load_state_dict(weights, strict=True)
```

Images are prepared outside: the centred square, resized, `(x / 255 - mean) / std` with those of `config.json`.
"""


def state_dict(backbone: tf.keras.Model) -> dict[str, np.ndarray]:
    """The weights of a backbone as torchvision names and lays them out.

    Args:
      backbone: of `networks`.

    Returns:
      float32 arrays by name, and `num_batches_tracked` of each BN, which PyTorch counts and nothing uses here.
    """
    arrays: dict[str, np.ndarray] = {}
    for layer in backbone.layers:
        if isinstance(layer, tf.keras.layers.Conv2D):
            kernel = layer.kernel.numpy().astype(np.float32)  # [k, k, in, out]
            arrays[torch_names.of_layer(layer.name, "kernel")] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        elif isinstance(layer, tf.keras.layers.BatchNormalization):
            for variable in ("gamma", "beta", "moving_mean", "moving_variance"):
                name = torch_names.of_layer(layer.name, variable)
                arrays[name] = getattr(layer, variable).numpy().astype(np.float32)
            arrays[name.rpartition(".")[0] + ".num_batches_tracked"] = np.zeros([], np.int64)
    return arrays


def architecture_of(subject: Subject) -> str:
    """torchvision's name of the backbone.

    Raises:
      UserError: it has none: another width or stem.
    """
    backbone = subject.encoder.get_layer("backbone")
    found = {tuple(variable.shape) for variable in backbone.trainable_variables if "kernel" in variable.name}
    for name, build in networks.BACKBONES.items():
        if backbone.count_params() == _PARAMETERS.get(name) and (7, 7, 3, 64) in found:
            return build.__name__
    raise UserError(
        "--format: PyTorch's libraries have no such network, wanted a run with --encoder=resnet50 or resnet18,"
        " --width_multiplier=1 and --stem=imagenet"
    )


# All parameters of a backbone of width 1 with the imagenet stem, BN's statistics included. They have no ResNet-10.
_PARAMETERS = {networks.RESNET50: 23_561_152, networks.RESNET18: 11_186_112}


def _write(subject: Subject, folder: str) -> None:
    tensor_file.write(
        os.path.join(folder, "model.safetensors"),
        state_dict(subject.encoder.get_layer("backbone")),
        {"format": "pt"},
    )
    config = _timm_config(subject)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)


def _timm_config(subject: Subject) -> dict:
    """What timm reads beside the weights (`timm.create_model("local-dir:FOLDER")`)."""
    about = subject.input_facts(any_size=False)
    features = int(subject.encoder.get_layer("backbone").output_shape[-1])
    return {
        "architecture": architecture_of(subject),
        "num_classes": 0,
        "num_features": features,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, *about["size"]],
            "mean": about["mean"],
            "std": about["std"],
            "crop_pct": subject.center_crop_fraction,
            "interpolation": "bilinear",
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


TORCHVISION = Format("torchvision", _write, _USE, any_size=False, architecture_of=architecture_of)
