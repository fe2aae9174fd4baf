"""The weights of a network by torchvision's names, whatever they are read from; of a head by `projection.`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from instcls_tf.errors import UserError, naming, shown
from instcls_tf.export import tensor_file, torch_names
from instcls_tf.initial import kinds
from instcls_tf.run.encoder import load_encoder

Arrays = dict[str, np.ndarray]
HEAD = "projection."
# Layers of the projection head, and torchvision's order of axes: [out, in] and [out, in, k, k].
_HEAD_LAYERS = ("fc1", "fc2", "fc")
_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
# Where checkpoints of PyTorch keep the weights; of DINO's two networks its own evaluation takes the teacher.
_WITHIN = ("state_dict", "model_state_dict", "teacher", "student", "model")


def read_arrays(path: str) -> Arrays:
    """The weights that `--init` names.

    Args:
      path: see `kinds.kind_of`.

    Raises:
      UserError: they cannot be read, or would have to be unpickled.
    """
    kind, path = kinds.kind_of(path)
    if kind == kinds.RUN:
        with naming("init"):
            return arrays_of_variables(load_encoder(path).variables, path)
    if kind == kinds.SAVED_MODEL:
        return arrays_of_variables(_variables_of_saved_model(path), path)
    if kind == kinds.SAFETENSORS:
        return _floats(tensor_file.read(path)[0])
    return _floats(_read_npz(path) if kind == kinds.NPZ else _read_torch(path))


def name_of_variable(name: str) -> str:
    """Keras' `layer1_0_conv1/kernel:0` as torchvision has it, `fc1/kernel:0` as `projection.fc1.weight`."""
    *_, layer, variable = ("/" + name.partition(":")[0]).split("/")
    if layer in _HEAD_LAYERS:
        return f"{HEAD}{layer}.{'weight' if variable == 'kernel' else variable}"
    return torch_names.of_layer(layer, variable)


def to_torch(value: np.ndarray) -> np.ndarray:
    """A kernel of Keras with torchvision's order of axes; anything else as it is."""
    return np.ascontiguousarray(value.transpose(_AXES[value.ndim])) if value.ndim in _AXES else value


def from_torch(value: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    return value.transpose(np.argsort(_AXES[value.ndim])) if value.ndim in _AXES else value


def arrays_of_variables(variables: Iterable[tf.Variable], where: str = "") -> Arrays:
    """Variables of Keras layers by torchvision's names.

    Raises:
      UserError: two of them have the same name.
    """
    arrays: Arrays = {}
    for variable in variables:
        name = name_of_variable(variable.name)
        if name in arrays:
            raise UserError(f"--init={shown(where)}: has two weights of the name {shown(name)}")
        arrays[name] = to_torch(variable.numpy().astype(np.float32))
    return arrays


def _variables_of_saved_model(path: str) -> list[tf.Variable]:
    """Without Keras, which would run what a model brings along in Python."""
    try:
        loaded = tf.saved_model.load(path)
    except Exception as error:  # of TensorFlow, about a file that is not as it was written
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--init={shown(path)}: cannot be read as a SavedModel ({shown(reason)})") from error
    found = tf.train.TrackableView(loaded).descendants()
    return list({id(variable): variable for variable in found if isinstance(variable, tf.Variable)}.values())


def _read_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # of NumPy, zipfile and zlib, about a file that is not as it was written
        raise UserError(f"--init={shown(path)}: is no .npz of plain arrays ({shown(error)})") from error


def _read_torch(path: str) -> dict[str, np.ndarray]:
    torch: Any = importlib.import_module("torch")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of PyTorch: damaged, or objects that it would have to unpickle
        raise UserError(
            f"--init={shown(path)}: PyTorch finds more than weights in it, or it is damaged ({type(error).__name__});"
            f" wanted a state dict alone, as torch.save(network.state_dict(), ...) writes it"
        ) from error
    state = _state_in(content)
    return {name: _numpy(value) for name, value in state.items() if hasattr(value, "numpy")}


def _numpy(tensor: Any) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # bfloat16 has none of its own


def _state_in(content: Any) -> Mapping[str, Any]:
    while isinstance(content, Mapping):
        inner = [content[name] for name in _WITHIN if isinstance(content.get(name), Mapping)]
        if not inner:
            return content
        content = inner[0]
    return {}


def _floats(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """What weights are; counters and such are integers."""
    return {name: np.asarray(value, np.float32) for name, value in arrays.items() if value.dtype.kind == "f"}
