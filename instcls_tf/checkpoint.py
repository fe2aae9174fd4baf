"""One TensorFlow checkpoint per save, whatever the number of workers.

The replicated part (encoder, optimiser) is an ordinary `tf.train.Checkpoint`. The classifier is stored as slices of one
`[N, D]` tensor: each worker writes its rows into a part of its own, rank 0 merges the parts' indices. So
`tf.train.load_checkpoint` reads `classifier/rows` as one tensor, and a run saved by T workers continues on any number.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from google.protobuf import text_format

from instcls_tf import collectives, networks
from instcls_tf.config import PretrainConfig, load_run
from instcls_tf.errors import UserError

_KEPT = 2
# Rows that are in memory twice while they are written or read.
_CHUNK_ROWS = 2**19


class Slices(NamedTuple):
    """This worker's rows of a tensor that is split over the workers."""

    variable: tf.Variable  # [n, ...]
    begin: int  # the first of its rows in the whole tensor
    total: int  # N


def checkpoint_folder(workdir: str) -> str:
    """Where a run keeps its checkpoints."""
    return os.path.join(workdir, "checkpoints")


def save(workdir: str, step: int, replicated: tf.train.Checkpoint, sliced: dict[str, Slices]) -> str:
    """Writes the checkpoint of `step`; all workers call it together, on a file system that they share.

    The previous checkpoint stays valid until this one is complete.

    Args:
      workdir: the run's folder.
      step: completed steps, part of the name.
      replicated: what is equal on all workers; rank 0's is written.
      sliced: tensors that are split over the workers, by their names in the checkpoint.

    Returns:
      The checkpoint's prefix, for `tf.train.load_checkpoint`.
    """
    folder = checkpoint_folder(workdir)
    prefix = os.path.join(folder, f"ckpt-{step:08d}")
    parts = os.path.join(folder, f".writing-{step:08d}")
    if collectives.rank() == 0:
        shutil.rmtree(parts, ignore_errors=True)
        os.makedirs(parts)
    collectives.barrier()
    _write_slices(os.path.join(parts, f"rank{collectives.rank():05d}"), sliced)
    if collectives.rank() == 0:
        replicated.write(os.path.join(parts, "replicated"))
    collectives.barrier()
    if collectives.rank() == 0:
        prefixes = sorted(path[: -len(".index")] for path in glob.glob(os.path.join(parts, "*.index")))
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=prefixes, destination_prefix=prefix, delete_old_dirs=False, allow_missing_files=False
        )
        shutil.rmtree(parts)
        _remember(folder, prefix)
    collectives.barrier()
    return prefix


def _write_slices(prefix: str, sliced: dict[str, Slices]) -> None:
    chunk = 0
    for name, part in sliced.items():
        rows, *shape = part.variable.shape
        for start in range(0, rows, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, rows)
            tf.raw_ops.SaveV2(
                prefix=f"{prefix}-{chunk:05d}",
                tensor_names=[name],
                shape_and_slices=[_slice_spec(part.total, shape, part.begin + start, stop - start)],
                tensors=[part.variable.sparse_read(tf.range(start, stop))],
            )
            chunk += 1


def _slice_spec(total: int, shape: list[int], begin: int, length: int) -> str:
    """TensorFlow's notation of a slice: the whole shape, then `begin,length` or `-` per dimension."""
    return " ".join(map(str, [total, *shape])) + f" {begin},{length}" + ":-" * len(shape)


def _remember(folder: str, newest: str) -> None:
    prefixes = sorted(path[: -len(".index")] for path in glob.glob(os.path.join(folder, "ckpt-*.index")))
    prefixes = [prefix for prefix in prefixes if prefix <= newest]
    kept = prefixes[-_KEPT:]
    state = tf.compat.v1.train.generate_checkpoint_state_proto(
        folder, os.path.basename(newest), [os.path.basename(path) for path in kept]
    )
    state_file = os.path.join(folder, "checkpoint")
    with open(state_file + ".new", "w") as file:
        file.write(text_format.MessageToString(state))
    os.replace(state_file + ".new", state_file)
    for prefix in prefixes[:-_KEPT]:
        for path in glob.glob(prefix + ".*"):
            os.remove(path)


def latest(workdir: str) -> str | None:
    """The prefix of the newest complete checkpoint of a run, None if it has not saved any.

    Raises:
      UserError: the newest checkpoint is recorded but its files are gone, or the record is damaged.
    """
    record = os.path.join(checkpoint_folder(workdir), "checkpoint")
    if not os.path.exists(record):
        return None
    try:
        state = tf.train.get_checkpoint_state(checkpoint_folder(workdir))
    except ValueError:
        state = None
    if state is None:
        raise UserError(f"--workdir={workdir}: cannot understand {record}, which names the newest checkpoint")
    prefix = os.path.join(checkpoint_folder(workdir), os.path.basename(state.model_checkpoint_path))
    if not os.path.exists(prefix + ".index"):
        raise UserError(f"--workdir={workdir}: its newest checkpoint has lost the file {prefix}.index")
    return prefix


def restore(prefix: str, replicated: tf.train.Checkpoint, sliced: dict[str, Slices]) -> None:
    """Reads a checkpoint written by any number of workers; each worker reads its own slices.

    Raises:
      UserError: the checkpoint lacks a variable, holds another number of instances, or is damaged.
    """
    with _damage_is_a_user_error(prefix):
        shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        for name, part in sliced.items():
            if name not in shapes:
                raise UserError(f"{prefix}: the checkpoint has no {name}")
            if shapes[name][0] != part.total:
                raise UserError(f"{prefix}: was made for {shapes[name][0]} instances, the dataset has {part.total} now")
        replicated.read(prefix).assert_consumed()
        for name, part in sliced.items():
            _read_slices(prefix, name, part)


def holds(prefix: str, name: str) -> bool:
    """Whether a checkpoint has a tensor of this name.

    Raises:
      UserError: the checkpoint is damaged.
    """
    with _damage_is_a_user_error(prefix):
        return name in tf.train.load_checkpoint(prefix).get_variable_to_shape_map()


@contextlib.contextmanager
def _damage_is_a_user_error(prefix: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
        raise UserError(f"{prefix}: cannot restore this checkpoint: {str(error).splitlines()[0]}") from error


def _read_slices(prefix: str, name: str, part: Slices) -> None:
    rows, *shape = part.variable.shape
    for start in range(0, rows, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, rows)
        (values,) = tf.raw_ops.RestoreV2(
            prefix=prefix,
            tensor_names=[name],
            shape_and_slices=[_slice_spec(part.total, shape, part.begin + start, stop - start)],
            dtypes=[part.variable.dtype],
        )
        part.variable.scatter_update(tf.IndexedSlices(values, tf.range(start, stop)))


def make_encoder(config: PretrainConfig, precision: str = "float32") -> tf.keras.Model:
    """The encoder (backbone and projection) that a recipe describes, with its random initial weights.

    Args:
      config: the recipe.
      precision: a Keras dtype policy; of this encoder alone, the global policy stays as it was.
    """
    outside = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(precision)
    try:
        return networks.build_encoder(
            encoder=config.encoder,
            width_multiplier=config.width_multiplier,
            stem=config.stem,
            mlp_head=config.mlp_head,
            embedding_size=config.embedding_size,
            zero_init_last_gamma=config.zero_init_last_gamma,
            seed=config.seed,
        )
    finally:
        tf.keras.mixed_precision.set_global_policy(outside)


def load_encoder(workdir: str) -> tf.keras.Model:
    """The encoder of a run, from its newest checkpoint; an ordinary Keras model that can be fine-tuned.

    Args:
      workdir: the run's folder.

    Returns:
      A model from pixels `[b, H, W, 3]` in 0..255 to projections `[b, D]`; `.get_layer("backbone")` gives the features.

    Raises:
      UserError: the folder holds no run, no checkpoint, or a damaged one.
    """
    config = load_run(workdir)
    prefix = latest(workdir)
    if prefix is None:
        raise UserError(f"--workdir={workdir}: the run has not saved a checkpoint yet")
    encoder = make_encoder(config)
    with _damage_is_a_user_error(prefix):
        # The optimiser stays in the file; without this TensorFlow would list each of its variables as lost.
        status = tf.train.Checkpoint(encoder=encoder).read(prefix).expect_partial()
        status.assert_existing_objects_matched()
    return encoder
