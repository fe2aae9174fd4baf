"""What `--init` may name, told by its name and content. No TensorFlow: a mistake is answered at once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re

from instcls_tf.errors import UserError, shown
from instcls_tf.files import is_there
from instcls_tf.workdir_files import RUN_FLAGS_NAME

RUN, SAVED_MODEL, SAFETENSORS, NPZ, TORCH = "run", "saved_model", "safetensors", "npz", "torch"
_SUFFIXES = {".safetensors": SAFETENSORS, ".npz": NPZ, ".pth": TORCH, ".pt": TORCH, ".bin": TORCH, ".tar": TORCH}
_WANTED = "the folder of a run or of a Keras SavedModel, or weights as .safetensors, .npz or .pth"
# Before it `torch.load(weights_only=True)` does not keep to weights.
_SAFE_TORCH = (2, 6)
# In an export for PyTorch.
_FILE_OF_EXPORT = "model.safetensors"


def kind_of(path: str) -> tuple[str, str]:
    """What is there: one of the kinds above, and the folder or file itself.

    Raises:
      UserError: there is nothing, or nothing that can be started from.
      MachineError: the file system fails.
    """
    if not is_there(path):
        raise UserError(f"--init={shown(path)}: no such file or folder, wanted {_WANTED}")
    if os.path.isdir(path):
        return _kind_of_folder(path)
    if not os.path.isfile(path):
        raise UserError(f"--init={shown(path)}: no such file or folder, wanted {_WANTED}")
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".pkl", ".pickle"):
        raise UserError(
            f"--init={shown(path)}: is a pickle, which may run any program when it is opened, and is not opened here;"
            f" wanted {_WANTED} (of Detectron2's networks take the file that they were converted from)"
        )
    if suffix not in _SUFFIXES:
        raise UserError(f"--init={shown(path)}: of an unknown kind, wanted {_WANTED}")
    if _SUFFIXES[suffix] == TORCH:
        _refuse_without_safe_torch(path)
    return _SUFFIXES[suffix], path


def _refuse_without_safe_torch(path: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"--init={shown(path)}: reading it needs PyTorch, which is not installed: install it, or write its state"
            f" dict as .safetensors or .npz where PyTorch is"
        )
    version = importlib.metadata.version("torch")
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < _SAFE_TORCH:
        raise UserError(
            f"--init={shown(path)}: PyTorch {shown(version)} may run programs that such a file holds (CVE-2025-32434),"
            f" wanted 2.6 or later, or its state dict as .safetensors"
        )


def _kind_of_folder(path: str) -> tuple[str, str]:
    if is_there(os.path.join(path, RUN_FLAGS_NAME)):
        return RUN, path
    if is_there(os.path.join(path, "saved_model.pb")):
        return SAVED_MODEL, path
    if is_there(os.path.join(path, _FILE_OF_EXPORT)):
        return SAFETENSORS, os.path.join(path, _FILE_OF_EXPORT)
    raise UserError(f"--init={shown(path)}: holds neither a run nor a SavedModel, wanted {_WANTED}")
