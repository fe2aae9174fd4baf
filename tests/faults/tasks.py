"""What two workers do in one job, fault after fault: each leaves what it said on every worker, and what is on disk.

Started by `test_two_workers.py`. A fault is of worker 1 alone. `pretrain` refuses on all workers alike, so that the job
can go on with the next one; how a command ends is another test's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.distributed import collectives, device, workers
from instcls_tf.encoder import bn_groups
from instcls_tf.errors import UserError
from instcls_tf.initial.start import read_initial
from instcls_tf.pretraining import agreement
from instcls_tf.run import checkpoint
from instcls_tf.run.checkpoint_manifest import Origin
from instcls_tf.run.lock import WorkdirLock
from instcls_tf.run.parts import Slices
from tests.faults.conftest import RECIPE

FAULTY = 1
THREADS_ELSEWHERE = 77
NAN_AT = 5  # the step, counted from 1


def main(folder: Path) -> None:
    """All faults, in an order in which one cannot spoil another."""
    workers.start()
    config = PretrainConfig(**RECIPE, dataset=f"folder:{folder / 'photos'}", workdir=str(folder / "refused"))
    faulty = collectives.rank() == FAULTY
    for name, value in {"seed": 1, "learning_rate": 0.5, "batch_size": 12, "max_steps": 4}.items():
        with said(folder, name):
            instcls_tf.pretrain(config.replace(**{name: value}) if faulty else config)
    with said(folder, "images"):
        source = open_source(f"folder:{folder / 'fewer'}") if faulty else open_source(config.dataset)
        instcls_tf.pretrain(config, dataclasses.replace(source, name=config.dataset))
    with said(folder, "code"), instead(agreement, "code_digest", lambda: "another"):
        instcls_tf.pretrain(config)
    with said(folder, "threads"), instead(device, "threads", lambda: THREADS_ELSEWHERE):
        instcls_tf.pretrain(config)
    with said(folder, "workdir"), instead(agreement, "_PATIENCE", 1.0):
        instcls_tf.pretrain(config.replace(workdir=str(folder / "elsewhere")) if faulty else config)
    with said(folder, "locked"):
        os.makedirs(config.workdir, exist_ok=True)
        lock = WorkdirLock(config.workdir) if faulty else None
        collectives.barrier()
        try:
            instcls_tf.pretrain(config)
        finally:
            if lock:
                lock.release()
    with said(folder, "weights"):
        variable = tf.Variable(tf.ones([3]) + (1e-7 if faulty else 0.0))
        agreement.refuse_different_weights([variable], 1000)
    _other_initial_weights(folder)
    _other_checkpoint(folder)
    _full_disk(folder)
    _spoilt_gradient(folder, config)


def _other_initial_weights(folder: Path) -> None:
    paths = {name: str(folder / f"{name}.npz") for name in ("init", "other", "absent")}
    np.savez(paths["init"], weight=np.ones([3], np.float32))
    np.savez(paths["other"], weight=np.full([3], 2, np.float32))
    collectives.barrier()
    for case in ("other", "absent"):
        with said(folder, f"init_{case}"):
            read_initial(paths[case if collectives.rank() == FAULTY else "init"])


def _other_checkpoint(folder: Path) -> None:
    state = tf.train.Checkpoint(kernel=tf.Variable(1.0)), {}
    prefixes = {run: checkpoint.save(str(folder / run), 1, *state, Origin(run)) for run in ("seen", "older")}
    agreement.refuse_other_checkpoints(prefixes["seen"])
    agreement._PATIENCE = 0.0
    for run, prefix in (("older", prefixes["older"]), ("unseen", str(folder / "unseen" / "ckpt-00000001"))):
        with said(folder, run):
            agreement.refuse_other_checkpoints(prefix if collectives.rank() == FAULTY else prefixes["seen"])


def _full_disk(folder: Path) -> None:
    rows = Slices(tf.Variable(tf.ones([5, 2])), 5 * collectives.rank(), 10)
    state = tf.train.Checkpoint(kernel=tf.Variable(1.0)), {"rows": rows}
    checkpoint.save(str(folder / "full"), 1, *state)

    def full(path: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with said(folder, "disk"), instead(checkpoint, "flush_to_disk", full):
        checkpoint.save(str(folder / "full"), 2, *state)
    checkpoint.restore(checkpoint.latest(str(folder / "full")), *state)


def _spoilt_gradient(folder: Path, config: PretrainConfig) -> None:
    """A run of which worker 1 gets one NaN in one gradient, the same continued, and one without the fault."""
    config = config.replace(workdir=str(folder / "spoilt"))
    calls = tf.Variable(0)

    def encode(*arguments) -> bn_groups.Encoded:
        encoded = original(*arguments)
        number = calls.assign_add(1)

        def backpropagate(gradient: tf.Tensor) -> list[tf.Tensor]:
            first, *others = encoded.backpropagate(gradient)
            place = [[0] * len(first.shape)]
            spoilt = tf.tensor_scatter_nd_update(first, place, [float("nan")])
            return [tf.where(number == NAN_AT, spoilt, first), *others]

        return encoded._replace(backpropagate=backpropagate)

    original = bn_groups.encode
    with said(folder, "gradient"), instead(bn_groups, "encode", encode):
        instcls_tf.pretrain(config)
    instcls_tf.pretrain(config)
    instcls_tf.pretrain(config.replace(workdir=str(folder / "unspoilt")))


@contextlib.contextmanager
def said(folder: Path, case: str) -> Iterator[None]:
    """Writes down how a case ended on this worker: empty if it was not refused."""
    sentence = ""
    try:
        yield
    except UserError as error:
        sentence = str(error)
    (folder / f"{case}.rank{collectives.rank()}").write_text(sentence)
    checkpoints = folder / "spoilt" / "checkpoints"
    if case == "gradient" and collectives.rank() == 0:
        (folder / "gradient.files").write_text("\n".join(path.name for path in checkpoints.glob("*.index")))
    collectives.barrier()


@contextlib.contextmanager
def instead(module: object, name: str, replacement: object) -> Iterator[None]:
    """Puts something else in a module's place, on the faulty worker."""
    original = getattr(module, name)
    if collectives.rank() == FAULTY:
        setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
