"""Virtual environments with one runtime each, made from the package registry that pip uses."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import sysconfig
from typing import Callable

from instcls_tf.errors import UserError

# By name: what pip installs. Versions are pinned, because figures are of versions.
PACKAGES = {
    "tf_2_15": ["tensorflow-cpu==2.15.1", "numpy<2"],
    "tf_2_20": ["tensorflow-cpu==2.20.0", "tf_keras==2.20.1"],
    "onnxruntime": ["onnxruntime==1.32.0", "numpy"],
    "litert": ["ai-edge-litert==2.3.0"],
    "torch": ["torch==2.14.1", "torchvision==0.29.1", "safetensors"],
    "timm": ["timm", "torch==2.14.1", "torchvision==0.29.1"],
    "imagededup": ["imagededup==0.3.3.post2"],
    "fastdup": ["fastdup==2.54"],
    "export": ["tf2onnx==1.17.0", "onnx==1.18.0", "onnxruntime==1.32.0"],
}
# Sees the packages of this environment as well, because it exports.
_ON_TOP = "export"
_STAMP = "made_of"


def interpreter(folder: str, name: str, say: Callable[[str], None]) -> str:
    """The Python of an environment, which is made if it is not there, or of other packages.

    Args:
      folder: holds the environments.
      name: see `PACKAGES`.
      say: told of it.

    Raises:
      UserError: it cannot be made.
    """
    own = os.path.join(os.path.abspath(folder), name)  # it may be run elsewhere
    python, stamp = os.path.join(own, "bin", "python"), os.path.join(own, _STAMP)
    made_of = hashlib.sha256(repr((PACKAGES[name], sys.version)).encode()).hexdigest()
    if _read(stamp) == made_of:
        return python
    say(f"making the environment {name}: {' '.join(PACKAGES[name])}")
    _call([sys.executable, "-m", "venv", "--clear", own], name)
    if name == _ON_TOP:
        packages = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        with open(os.path.join(packages.strip(), "on_top.pth"), "w") as file:
            file.write(sysconfig.get_path("purelib") + "\n")
    options = ["--no-deps"] if name == _ON_TOP else []
    _call([python, "-m", "pip", "install", "-q", *options, *PACKAGES[name]], name)
    with open(stamp, "w") as file:
        file.write(made_of)
    return python


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path) as file:
        return file.read()
    return ""


def _call(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " ".join((done.stderr or done.stdout).split())[-500:]
        raise UserError(f"the environment {name} cannot be made: {last}")
