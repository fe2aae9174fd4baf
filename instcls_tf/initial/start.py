"""What a run starts from: `--init`, agreed upon by all workers; and kept, to hold the run against it later."""

from __future__ import annotations

import hashlib
import os

import tensorflow as tf

from instcls_tf.config import FLOAT32, PretrainConfig
from instcls_tf.distributed import collectives, workers
from instcls_tf.encoder.networks import make_encoder
from instcls_tf.errors import UserError, shown
from instcls_tf.export import tensor_file
from instcls_tf.files import error_of, is_there, whole_file
from instcls_tf.initial.arrays import Arrays, arrays_of_variables, read_arrays
from instcls_tf.initial.matching import Matched, fill, match
from instcls_tf.workdir_files import STARTING_WEIGHTS_NAME


def read_initial(path: str) -> Arrays:
    """The weights that `--init` names; all workers together, each of which reads them.

    Raises:
      UserError: a worker cannot read them, or reads others than worker 0; on all workers alike.
      MachineError: they are a run's, whose checkpoint a worker's file system fails to read; likewise.
    """
    arrays = workers.all_or_none(lambda: _read_here(path))
    digests = workers.everybodys(_digest(arrays))
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise UserError(
                f"--init={shown(path)}: worker {rank} reads other weights there than worker 0 (digests {digest} and"
                f" {digests[0]}), wanted the same file for all"
            )
    return arrays


def _read_here(path: str) -> Arrays:
    """`read_arrays`, whose sentence says on which worker, but for the first."""
    try:
        return read_arrays(path)
    except UserError as error:
        rank = collectives.rank()
        raise type(error)(f"worker {rank}: {error}" if rank else str(error)) from error


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()[:16]


def initialize_encoder(encoder: tf.keras.Model, path: str) -> list[str]:
    """Gives an encoder the weights that `--init` names; all workers together.

    Args:
      encoder: of `networks.build_encoder`.
      path: the value of `--init`.

    Returns:
      What was left out and what stays random, in words.

    Raises:
      UserError: they cannot be read, or are not those of this network; nothing is changed.
    """
    matched: Matched = match(encoder, read_initial(path), path)
    fill(encoder, matched)
    return matched.notes


def starting_weights_path(workdir: str) -> str:
    """Where a run keeps the encoder that its first step began with."""
    return os.path.join(workdir, STARTING_WEIGHTS_NAME)


def keep_starting_weights(workdir: str, encoder: tf.keras.Model) -> None:
    """Writes the encoder as it is before the first step, BN statistics included; another run's `--init` may name it.

    Random weights follow from the seed, but only with the same versions of everything; and a file of `--init` may move.

    Raises:
      UserError: it cannot be written.
    """
    path = starting_weights_path(workdir)
    try:
        with whole_file(path) as file:
            tensor_file.write_to(file, arrays_of_variables(encoder.variables), {"format": "pt"})
    except OSError as error:
        raise error_of(error, f"{shown(path)}: cannot be written ({error.strerror})") from error


def load_starting_encoder(workdir: str, config: PretrainConfig, precision: str = FLOAT32) -> tf.keras.Model:
    """The encoder that a run started from.

    Args:
      workdir: the run's folder.
      config: its recipe.
      precision: see `make_encoder`.

    Raises:
      UserError: the run has not kept it, or the file is damaged.
    """
    path = starting_weights_path(workdir)
    if not is_there(path):
        raise UserError(f"{shown(path)}: is missing: the run began before runs kept their starting weights")
    encoder = make_encoder(config, precision)
    fill(encoder, match(encoder, tensor_file.read(path)[0], path))
    return encoder
