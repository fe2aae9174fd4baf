"""Whether this machine has GPUs, also where TensorFlow cannot load them, of which it says nothing. No TensorFlow."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from ctypes.util import find_library
from pathlib import Path

_DRIVER, _DEVICES = Path("/proc/driver/nvidia/version"), Path("/dev")

LEFT_OUT = "NVIDIA's driver has a GPU, and TensorFlow cannot load it: CPUs compute"
# Set by the launcher if it has left workers out: for each of the others, in the order of ranks, the numbers of the GPUs
# on its host that they had, with + between them.
UNUSED = "INSTCLS_UNUSED_GPUS"
_EXTRA = "tensorflow[and-cuda]==" + ("2.15.1" if sys.version_info < (3, 12) else "2.18.1")
REMEDY = (
    f"pip install '{_EXTRA}', or docker/Dockerfile, has what TensorFlow loads (TF_CPP_MIN_LOG_LEVEL=0 tells what it"
    " lacks); CUDA_VISIBLE_DEVICES=-1 if CPUs are meant to compute"
)


def are_there(driver: Path = _DRIVER, devices: Path = _DEVICES) -> bool:
    """Whether this process may use a GPU, by what NVIDIA's driver has left in the file system.

    Not where containers or Slurm keep the devices from it, nor where CUDA_VISIBLE_DEVICES hides them.

    Args:
      driver: a file that is there if the driver is.
      devices: the folder of the devices' files.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if not (driver.exists() and re.fullmatch(r"\d+|(GPU|MIG)-.*", first)):
        return False
    return any(os.access(device, os.R_OK | os.W_OK) for device in devices.glob("nvidia[0-9]*"))


def can_be_loaded(driver: Path = _DRIVER, devices: Path = _DEVICES) -> bool:
    """Whether GPUs are there, see `are_there`, and the library without which TensorFlow leaves them alone."""
    return are_there(driver, devices) and (_has_module("nvidia.cudnn") or find_library("cudnn") is not None)


def unused(rank: int) -> set[int]:
    """The numbers of the GPUs on a worker's host that nobody is to take, as those have failed who had them."""
    told = dict(enumerate(os.environ.get(UNUSED, "").split(",")))
    return {int(number) for number in told.get(rank, "").split("+") if number}


def _has_module(name: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):  # of the package that it would be in
        return importlib.util.find_spec(name) is not None
    return False
