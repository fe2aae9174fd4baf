"""Exports opened in the runtimes that read them: each becomes a function from images to outputs by name.

A runtime is imported when it is asked for, so that any one of them is enough. What a file could run on loading is
refused: Detectron2's pickles may hold arrays only.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import pickle
from typing import Any, Callable

import numpy as np

from instcls_tf.errors import UserError, shown
from instcls_tf.export import numpy_resnet, tensor_file, torch_names
from instcls_tf.export.names import FILES, RUNTIMES

# Images uint8 [1, h, w, 3] to outputs by name.
Model = Callable[[np.ndarray], dict[str, np.ndarray]]


def open_model(folder: str, card: dict, runtime: str = "") -> tuple[str, str, Model]:
    """Loads an export.

    Args:
      folder: the export.
      card: its model card.
      runtime: see `names.RUNTIMES`; empty for the first that is installed.

    Returns:
      The runtime's name, its version, and the model.

    Raises:
      UserError: the format is unknown, no runtime is there, or it does not take the file.
    """
    known = RUNTIMES.get(card["format"])
    if known is None:
        raise UserError(f"{shown(folder)}: has the unknown format {shown(card['format'])}")
    if runtime and runtime not in known:
        raise UserError(f"--runtime={shown(runtime)}: must be one of {', '.join(known)} for {card['format']}")
    wanted = [runtime] if runtime else list(known)
    there = [name for name in wanted if importlib.util.find_spec(known[name])]
    if not there:
        raise UserError(f"{shown(folder)}: {card['format']} needs {' or '.join(wanted)}, which is not installed")
    path = os.path.join(folder, FILES[card["format"]])
    if not os.path.isfile(path):
        raise UserError(f"{shown(path)}: is missing")
    module = importlib.import_module(known[there[0]])
    try:
        return there[0], module.__version__, _OPENERS[card["format"], there[0]](module, folder, card)
    except UserError:
        raise
    except Exception as error:  # of the runtime, about a file that is not as it was written
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{shown(path)}: {there[0]} does not load it ({type(error).__name__}: {reason})") from error


def _serving(tf: Any, folder: str, card: dict) -> Model:
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    return lambda images: {name: rows.numpy() for name, rows in serve(images=tf.constant(images)).items()}


def _saved_model(tf: Any, folder: str, card: dict) -> Model:
    loaded = tf.saved_model.load(folder)
    signatures = loaded.signatures

    def model(images: np.ndarray) -> dict[str, np.ndarray]:
        # All signatures and, where nothing is to be resized, both ways without one have to agree; the worst is told.
        # Arrays of the network's size are not cut any more, as files of it are.
        served = signatures["serving_default"](images=tf.constant(images))
        encoded = tf.stack([tf.io.encode_png(image) for image in images] + [tf.constant(b"no image")])
        of_bytes = signatures["jpeg"](image_bytes=encoded)
        if of_bytes["ok"].numpy().tolist() != [True] * len(images) + [False]:
            raise UserError(f"{shown(folder)}: the signature jpeg takes no PNG, or something else for one")
        is_prepared = list(images.shape[1:3]) == card["input"]["size"]
        is_cut = is_prepared and card["input"]["center_crop_fraction"] != 1
        found = {name: [served[name]] for name in ("features", "projection")}
        found["projection"].append(signatures["projection"](images=tf.constant(images))["projection"])
        if not is_cut:
            for name, values in found.items():
                values.append(of_bytes[name][:-1])
        if is_prepared:
            features = loaded.backbone(tf.constant(images))
            found["features"].append(features)
            found["projection"].append(loaded.projection(features))
        return {name: _farthest(values) for name, values in found.items()}

    return model


def _farthest(values: list[Any]) -> np.ndarray:
    """The first of several answers that are to be the same, or of those that differ from it the farthest, NaN first."""
    first, *others = (np.asarray(value) for value in values)
    deviations = [np.nan_to_num(np.abs(other - first), nan=np.inf).max() for other in others]
    return others[int(np.argmax(deviations))] if max(deviations) > 0 else first


def _onnx(onnxruntime: Any, folder: str, card: dict) -> Model:
    session = onnxruntime.InferenceSession(
        os.path.join(folder, FILES[card["format"]]), providers=["CPUExecutionProvider"]
    )  # fmt: skip
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images})))


def _litert(_: Any, folder: str, card: dict) -> Model:
    return _in_interpreter(importlib.import_module("ai_edge_litert.interpreter"), folder)


def _tensorflow_lite(tf: Any, folder: str, card: dict) -> Model:
    return _in_interpreter(tf.lite, folder)


def _in_interpreter(library: Any, folder: str) -> Model:
    with open(os.path.join(folder, FILES["litert"]), "rb") as file:
        interpreter = library.Interpreter(model_content=file.read(), num_threads=1)
    embed = interpreter.get_signature_runner()
    return lambda images: {name: rows.copy() for name, rows in embed(images=images).items()}


def _prepared(images: np.ndarray, card: dict) -> np.ndarray:
    """Pixels as networks without preprocessing want them: float32 `[b, 3, h, w]`, mean and deviation taken out."""
    mean, std = (np.array(card["input"][name], np.float32) for name in ("mean", "std"))
    return ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


def _torchvision(torchvision: Any, folder: str, card: dict) -> Model:
    network = getattr(torchvision.models, card["architecture"])()
    network.fc = importlib.import_module("torch").nn.Identity()
    return _in_torch(network, folder, card)


def _timm(timm: Any, folder: str, card: dict) -> Model:
    return _in_torch(timm.create_model(card["architecture"], num_classes=0), folder, card)


def _in_torch(network: Any, folder: str, card: dict) -> Model:
    torch = importlib.import_module("torch")
    arrays, _ = tensor_file.read(os.path.join(folder, FILES["torchvision"]))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    network.eval()

    def model(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {"features": network(torch.from_numpy(_prepared(images, card))).numpy()}

    return model


def _numpy_of_safetensors(_: Any, folder: str, card: dict) -> Model:
    return _in_numpy(tensor_file.read(os.path.join(folder, FILES["torchvision"]))[0], card)


def _numpy_of_detectron2(_: Any, folder: str, card: dict) -> Model:
    with open(os.path.join(folder, FILES["detectron2"]), "rb") as file:
        arrays = _ArraysOnly(io.BytesIO(file.read())).load()["model"]
    return _in_numpy({torch_names.of_detectron2(name): array for name, array in arrays.items()}, card)


def _in_numpy(arrays: dict[str, np.ndarray], card: dict) -> Model:
    return lambda images: {"features": numpy_resnet.features(arrays, _prepared(images, card))}


class _ArraysOnly(pickle.Unpickler):
    """Pickles of dictionaries of arrays; anything else that one could build, and so run, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"dtype", "ndarray", "_reconstruct", "_frombuffer"}
        if module.split(".")[0] != "numpy" or name not in allowed:
            raise UserError(f"the pickle holds {module}.{name}, and arrays only are loaded")
        return super().find_class(module, name)


_OPENERS: dict[tuple[str, str], Callable[[Any, str, dict], Model]] = {
    ("saved_model", "tensorflow"): _saved_model,
    ("saved_model", "serving"): _serving,
    ("onnx", "onnxruntime"): _onnx,
    ("onnx_int8", "onnxruntime"): _onnx,
    ("litert", "litert"): _litert,
    ("litert", "tensorflow"): _tensorflow_lite,
    ("torchvision", "torchvision"): _torchvision,
    ("torchvision", "timm"): _timm,
    ("torchvision", "numpy"): _numpy_of_safetensors,
    ("detectron2", "numpy"): _numpy_of_detectron2,
}
