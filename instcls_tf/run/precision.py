"""What `--precision=auto` is on a machine, or was when a run began. No TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from pathlib import Path

from instcls_tf.config import AUTO, FLOAT32, MIXED_BFLOAT16, PretrainConfig
from instcls_tf.distributed import gpus
from instcls_tf.run.workdir import can_continue, load_run

_PROCESSOR = Path("/proc/cpuinfo")
# Of processors that multiply matrices of bfloat16 (x86's names).
_MULTIPLIES = {"avx512_bf16", "amx_bf16"}
_COMPUTES_FROM = 8.0  # Ampere
_SECONDS = 20


def with_precision(config: PretrainConfig) -> PretrainConfig:
    """A recipe with a number type for `auto`; others stay as they are.

    A run that is in the workdir already keeps its own. Otherwise it is mixed_bfloat16 where the machine computes in it,
    float32 elsewhere.

    Args:
      config: the recipe.

    Raises:
      UserError: the workdir has a run whose `run.flags` cannot be understood.
    """
    if config.precision != AUTO:
        return config
    workdir = config.workdir
    if workdir and can_continue(workdir):
        return config.replace(precision=load_run(workdir).precision)
    return config.replace(precision=MIXED_BFLOAT16 if computes_in_bfloat16() else FLOAT32)


def note_of(config: PretrainConfig) -> str | None:
    """What a user is told of the encoder's number type, if anything.

    Args:
      config: of a run, with a number type that is not `auto`.
    """
    if config.precision == FLOAT32:
        return None
    note = f"--precision={config.precision}: of the encoder; features are judged in float32"
    if config.precision == MIXED_BFLOAT16 and not computes_in_bfloat16():
        note += ". This machine has no instructions for it: float32 may be ten times as fast"
    return note


@functools.cache
def computes_in_bfloat16() -> bool:
    """Whether the GPU, if TensorFlow may use one, or else the processor has instructions for products in bfloat16."""
    return gpu_computes_in_bfloat16() if gpus.can_be_loaded() else processor_computes_in_bfloat16(_PROCESSOR)


def processor_computes_in_bfloat16(path: Path) -> bool:
    """Whether a processor has them, by what Linux says of it in `path`; not if there is no such file."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, words = line.partition(":")
            if name.strip() == "flags":
                return not _MULTIPLIES.isdisjoint(words.split())
    return False


def gpu_computes_in_bfloat16() -> bool:
    """Whether all GPUs have them, by what NVIDIA's tool says; not if it does not answer."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout
        versions = [float(line) for line in answer.split()]
        return bool(versions) and min(versions) >= _COMPUTES_FROM
    return False
