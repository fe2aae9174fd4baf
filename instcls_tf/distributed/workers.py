"""How every command starts on its workers, and the sums they share."""

from __future__ import annotations

import functools
import json
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, Callable, TypeVar, cast

import numpy as np
import tensorflow as tf

from instcls_tf.distributed import collectives, device
from instcls_tf.errors import DivergedError, MachineError, UserError
from instcls_tf.progress import Progress

Result = TypeVar("Result")

# What differs in its exit status, or in whether a job is started again.
_KINDS: dict[str, type[UserError]] = {kind.__name__: kind for kind in (MachineError, DivergedError)}


def init() -> None:
    """Joins the other workers and takes a device: what a script of your own under a launcher calls first.

    `mpirun -np 2 python train.py` or `horovodrun` starts the workers. From here on a `ShardedClassifier` has this
    worker's share of the classes. `horovod.tensorflow.init()` may have been called before, and is called here if it was
    not. One worker needs no call; once more changes nothing. `pretrain`, `embed`, `Index.of_run` and `Index.load` call
    it themselves.

    Before TensorFlow's first operation, after which a process takes no other device: each worker takes one GPU, and the
    workers of a machine share its cores.

    Raises:
      UserError: of several workers, TensorFlow has its devices already, or workers share a GPU, which NCCL cannot; or
        the environment's INSTCLS_THREADS is no number of threads.
    """
    collectives.init()
    device.take()
    _refuse_shared_gpus()


def start(seed: int = 0, notes: Iterable[str] = ()) -> Progress:
    """`init`, and fixes the seeds; once more changes nothing but the seeds.

    Args:
      seed: of Python, NumPy and TensorFlow.
      notes: lines that the user reads first, such as what was left out of the images.

    Returns:
      What rank 0 reports progress with.

    Raises:
      UserError: as `init`.
    """
    init()
    fix_seeds(seed)
    progress = Progress(visible=collectives.rank() == 0)
    for note in notes:
        progress.say(note)
    return progress


@functools.cache
def _refuse_shared_gpus() -> None:
    """On all workers alike, once; without NCCL workers may share a GPU."""
    if not collectives.has_nccl():
        return
    own = (socket.gethostname(), device.pci_address(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    with tf.device("CPU"):  # where messages go by MPI
        everybody = everybodys(own)
    taken = Counter((host, address) for host, address, _ in everybody if address is not None)
    for host, _, visible in everybody:
        gpus = [count for (where, _), count in taken.items() if where == host]
        if max(gpus, default=0) > 1:
            raise UserError(
                f"{sum(gpus)} workers on {host}, {len(gpus)} GPU(s)"
                f" (CUDA_VISIBLE_DEVICES{' is not set' if visible is None else f'={visible}'}):"
                f" wanted one for each, so -np or -H with at most {len(gpus)} there, as NCCL cannot share them"
            )


def fix_seeds(seed: int) -> None:
    """Those of Python, NumPy and TensorFlow; initialisers of Keras draw theirs from the first."""
    if sys.version_info < (3, 12):
        tf.keras.utils.set_random_seed(seed)
        return
    # tf_keras 2.18 would ask a generator of its own for an integer up to 1e9, a float, which Python 3.12 refuses.
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, this is the one that libraries draw from
    tf.random.set_seed(seed)


def total(values: np.ndarray | list, name: str) -> np.ndarray:
    """The sum of the workers' arrays (float64, so that counts stay exact); all workers call it together."""
    return collectives.sum_over_workers(tf.constant(values, tf.float64), name).numpy()


def rank_0_says(yes: bool, name: str) -> bool:
    """What rank 0 found, on all workers: a file system may show them different things for a moment."""
    return bool(total([float(yes and collectives.rank() == 0)], name)[0])


def everybodys(mine: Any) -> list[Any]:
    """What each worker says, in the order of ranks; all workers together, outside of a graph.

    Args:
      mine: of this worker: what JSON can hold.
    """
    text = tf.constant(np.frombuffer(json.dumps(mine).encode() + b"\n", np.uint8))
    gathered = collectives.all_gather(text, "everybodys").numpy().tobytes()
    return [json.loads(line) for line in gathered.decode().splitlines()]


def all_or_none(work: Callable[[], Result]) -> Result:
    """What `work` returns on this worker; all workers together, and outside of a graph.

    Args:
      work: enters no collective.

    Raises:
      UserError: it has failed on a worker; the first one's, on all of them, so that none waits for one that has left.
      MachineError, DivergedError: likewise.
    """
    result, problem = None, ["", ""]
    try:
        result = work()
    except UserError as error:
        problem = [type(error).__name__, str(error)]
    for kind, sentence in everybodys(problem):
        if kind:
            raise _KINDS.get(kind, UserError)(sentence)
    return cast(Result, result)


def of_rank_0(look: Callable[[], Result]) -> Result:
    """What `look` returns on rank 0, on all workers: another's file system may show it something else for a while.

    Args:
      look: asked on rank 0 alone; returns what JSON can hold.

    Raises:
      UserError: rank 0's; on all workers alike.
    """
    found, *_ = everybodys(all_or_none(lambda: look() if collectives.rank() == 0 else None))
    return cast(Result, found)


def merged(mine: dict[str, str]) -> dict[str, str]:
    """What the workers' dictionaries hold together, by the lower rank where several have a key; all together."""
    return {key: value for one in reversed(everybodys(mine)) for key, value in one.items()}


def on_rank_0(action: Callable[[], object]) -> None:
    """Does on rank 0 what only one worker may do; all workers together.

    Raises:
      UserError: rank 0's; on all workers alike, so that none waits for those that have ended.
    """
    all_or_none(lambda: action() if collectives.rank() == 0 else None)
