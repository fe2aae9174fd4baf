"""Libraries of TensorFlow operations in C++, compiled into the environment with g++.

A file's name holds a hash of all that it is made from, so that a library of other sources or of another TensorFlow is
never loaded.
"""

from __future__ import annotations

import dataclasses
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

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-Wall", "-Wno-psabi")
# Kernels are compiled once per family of processors; which one runs is decided at run time.
_FAMILIES: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "kBaselineKernels": ("-march=x86-64",),
        "kAvx2Kernels": ("-march=x86-64-v3",),
        "kAvx512Kernels": ("-march=x86-64-v4",),
        "kAvx512Bf16Kernels": ("-march=x86-64-v4", "-mavx512bf16"),
    },
    "aarch64": {"kBaselineKernels": ("-march=armv8-a",)},
}


@dataclasses.dataclass(frozen=True)
class Library:
    """One library: `NAME.cc` with the kernels, compiled for each family, `NAME_ops.cc` and `NAME.h`.

    Attributes:
      folder: where the sources are.
      name: of the library and its sources.
      flags: of the kernels alone.
      left_out: families that have no kernels of their own.
    """

    folder: Path
    name: str
    flags: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @functools.cached_property
    def path(self) -> Path:
        """Where the library of these sources and this TensorFlow belongs, whether or not it is there."""
        made_from = hashlib.sha256()
        for name in (f"{self.name}.cc", f"{self.name}_ops.cc", f"{self.name}.h"):
            made_from.update((self.folder / name).read_bytes())
        made_from.update(f"{_tensorflow_version()} {_FLAGS} {self.flags} {self.families}".encode())
        return Path(sys.prefix) / "lib" / "instcls_tf" / f"{self.name}-{made_from.hexdigest()[:16]}.so"

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """Flags by the names of the kernels that this kind of processor has."""
        families = _FAMILIES.get(platform.machine(), {})
        return {name: flags for name, flags in families.items() if name not in self.left_out}

    def build(self) -> None:
        """Compiles and links what is missing.

        Raises:
          SystemExit: the processor is not known, or the compiler failed; its output has been printed.
        """
        if self.path.exists():
            return
        if not self.families:
            sys.exit(f"no kernels for {platform.machine()} processors: TensorFlow's own operations are used")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            units = {
                os.path.join(folder, f"{kernels}.o"): [
                    *flags, *self.flags, f"-DINSTCLS_KERNELS={kernels}", f"{self.name}.cc"
                ]
                for kernels, flags in self.families.items()
            }  # fmt: skip
            units[os.path.join(folder, "operations.o")] = [*tf.sysconfig.get_compile_flags(), f"{self.name}_ops.cc"]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda unit: self._run("-c", *unit[1], "-o", unit[0]), units.items()))
            linked = os.path.join(folder, self.path.name)
            self._run("-shared", *units, *tf.sysconfig.get_link_flags(), "-o", linked)
            os.replace(linked, self.path)

    def _run(self, *arguments: str) -> None:
        command = [os.environ.get("CXX", "g++"), *_FLAGS, *arguments]
        try:
            finished = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        except OSError as error:
            sys.exit(f"{command[0]}: {error.strerror}")
        if finished.returncode:
            sys.exit(f"{' '.join(command)}\n{finished.stderr}")


def _tensorflow_version() -> str:
    for name in ("tensorflow", "tensorflow-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
