"""Compiles the kernels into the environment: `python -m instcls_tf.kernels.build`.

About ten seconds with g++; nothing is done when they are there already. The file's name holds a hash of all that it is
made from, so that a library of other sources or of another TensorFlow is never loaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

_FOLDER = Path(__file__).parent
_KERNELS, _OPERATIONS, _HEADER = "streamed_softmax.cc", "streamed_softmax_ops.cc", "streamed_softmax.h"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-Wall", "-Wno-psabi")
# The kernels once per family of processors; which one runs is decided at run time.
_FAMILIES = {
    "x86_64": {
        "kBaselineKernels": ("-march=x86-64",),
        "kAvx2Kernels": ("-march=x86-64-v3",),
        "kAvx512Kernels": ("-march=x86-64-v4",),
        "kAvx512Bf16Kernels": ("-march=x86-64-v4", "-mavx512bf16"),
    },
    "aarch64": {"kBaselineKernels": ("-march=armv8-a",)},
}


@functools.cache
def library_path() -> Path:
    """Where the library of these sources and this TensorFlow belongs, whether or not it is there."""
    made_from = hashlib.sha256()
    for name in (_KERNELS, _OPERATIONS, _HEADER):
        made_from.update((_FOLDER / name).read_bytes())
    made_from.update(f"{_tensorflow_version()} {_FLAGS} {_families()}".encode())
    return Path(sys.prefix) / "lib" / "instcls_tf" / f"streamed_softmax-{made_from.hexdigest()[:16]}.so"


def _tensorflow_version() -> str:
    for name in ("tensorflow", "tensorflow-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _families() -> dict[str, tuple[str, ...]]:
    return _FAMILIES.get(platform.machine(), {})


def build() -> None:
    """Compiles and links what is missing.

    Raises:
      SystemExit: the processor is not known, or the compiler failed; its output has been printed.
    """
    target = library_path()
    if target.exists():
        return
    if not _families():
        sys.exit(f"no kernels for {platform.machine()} processors: TensorFlow's own operations are used")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        units = {
            os.path.join(folder, f"{kernels}.o"): [*flags, f"-DINSTCLS_KERNELS={kernels}", _KERNELS]
            for kernels, flags in _families().items()
        }
        units[os.path.join(folder, "operations.o")] = [*tf.sysconfig.get_compile_flags(), _OPERATIONS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda unit: _run("-c", *unit[1], "-o", unit[0]), units.items()))
        linked = os.path.join(folder, target.name)
        _run("-shared", *units, *tf.sysconfig.get_link_flags(), "-o", linked)
        os.replace(linked, target)


def _run(*arguments: str) -> None:
    command = [os.environ.get("CXX", "g++"), *_FLAGS, *arguments]
    try:
        finished = subprocess.run(command, cwd=_FOLDER, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
    if finished.returncode:
        sys.exit(f"{' '.join(command)}\n{finished.stderr}")


if __name__ == "__main__":
    build()
