"""What a worker tells of its machine without computing anything. No TensorFlow."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from instcls_tf.classifier.kernels import streamed_softmax
from instcls_tf.data.kernels import views
from instcls_tf.distributed import cores, ports
from instcls_tf.distributed.memory import free_bytes
from instcls_tf.run.code import code_digest

_OF_THE_LANE = "tensorflow-addons" if sys.version_info < (3, 12) else "tf-keras"
_PACKAGES = ("tensorflow", "horovod", "numpy", "protobuf", "keras-cv", "tensorflow-datasets", _OF_THE_LANE)
_SHARED_MEMORY = "/dev/shm"


def describe(workers_here: int) -> dict[str, Any]:
    """This worker's machine, in what JSON can hold.

    Args:
      workers_here: on this machine.
    """
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "code": code_digest(),
        "mpirun": shutil.which(
            "mpirun", path=os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
        ),
        "horovod": _horovod_libraries(),
        "kernels": [
            library.path.stem for library in (streamed_softmax.LIBRARY, views.LIBRARY) if library.path.exists()
        ],
        "workers": workers_here,
        "cores": os.cpu_count(),
        "allowed_cores": cores.allowed(),
        "is_bound": cores.is_bound(),
        "share": cores.own_share(workers_here),
        "threads": cores.threads_of_worker(workers_here),
        "free_memory": free_bytes(),
        "shared_memory": _size_of(_SHARED_MEMORY),
        "home_is_writable": os.access(os.path.expanduser("~"), os.W_OK),
        "listening": ports.listening(os.getpid()),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what is computed; `none` for one that is missing."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        found[name] = "none"
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _horovod_libraries() -> list[str]:
    """The compiled parts of Horovod, without loading them."""
    for folder in sys.path:
        found = sorted(path.name for path in Path(folder or ".").glob("horovod/tensorflow/mpi_lib*.so"))
        if found:
            return found
    return []


def _size_of(folder: str) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).total
    return None
