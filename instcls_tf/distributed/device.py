"""The device of a worker, and how its process keeps memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import tensorflow as tf

from instcls_tf.distributed import collectives, cores, gpus
from instcls_tf.errors import UserError

# Names and numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def take() -> None:
    """Each worker takes one GPU, none that the launcher has left out; the workers of a machine share its cores.

    After `collectives.init` and before TensorFlow's first operation: from then on it takes no other device. One worker
    alone may come later, as in a notebook where `load_encoder` was first: it goes on with what TensorFlow has.

    Raises:
      UserError: several workers, and TensorFlow has its devices or threads already; or the environment asks for a
        number of threads that is none.
    """
    for take_part in (_share_cores, _take_gpu):  # each for itself: what one is refused, the other may have
        _take_unless_late(take_part)
    _reuse_freed_memory()


def _take_unless_late(take_part: Callable[[], None]) -> None:
    try:
        take_part()
    except UserError:  # a ValueError, too
        raise
    except (RuntimeError, ValueError) as error:  # it has computed, or the user has parted a GPU's memory
        if collectives.size() > 1:
            raise UserError(
                "TensorFlow has its devices already, before the workers could take theirs: with several workers"
                " instcls_tf.init(), pretrain, embed, Index.of_run or Index.load come before load_encoder and whatever"
                " else computes with TensorFlow"
            ) from error


def _take_gpu() -> None:
    there = tf.config.list_physical_devices("GPU")
    if there:
        unused = gpus.unused(collectives.rank())
        used = [gpu for number, gpu in enumerate(there) if number not in unused]
        if len(used) < collectives.local_size():  # workers share them, or those that failed are gone by themselves
            used = there
        mine = used[collectives.local_rank() % len(used)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)


def pci_address() -> str | None:
    """Where this worker's GPU is plugged in, by which NCCL tells GPUs apart; None without one, or if CUDA is silent.

    Its number does not tell: launchers may show each worker a GPU of its own, which is then the only one.
    """
    visible = tf.config.get_visible_devices("GPU")
    try:
        cuda = ctypes.CDLL("libcuda.so.1") if visible else None
    except OSError:
        cuda = None
    if cuda is None:
        return None
    handle, address = ctypes.c_int(), ctypes.create_string_buffer(32)
    number = int(visible[0].name.rpartition(":")[2])
    has_failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), number)
    if has_failed or cuda.cuDeviceGetPCIBusId(address, len(address), handle):
        return None
    return address.value.decode()


def _share_cores() -> None:
    """As many threads within an operation as a worker has cores, so that workers do not push each other aside.

    TensorFlow's default is all cores of the machine for each worker. One worker keeps them, unless workers on other
    machines have fewer, as convolutions are rounded by the number of threads, or a quota is lower, which TensorFlow
    does not see.
    """
    is_throttled = cores.allowed() < cores.affinity() and "TF_NUM_INTRAOP_THREADS" not in os.environ
    if collectives.local_size() > 1 or cores.THREADS in os.environ or is_throttled:
        threads = cores.threads_of_worker(collectives.local_size())
        tf.config.threading.set_intra_op_parallelism_threads(threads)


def threads() -> int | None:
    """How many threads the encoder's operations run on, by which their sums are rounded; None on a GPU."""
    if tf.config.get_visible_devices("GPU"):
        return None
    asked = tf.config.threading.get_intra_op_parallelism_threads()
    return asked or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0) or cores.allowed()


def _reuse_freed_memory() -> None:
    """Lets glibc keep the memory of freed tiles for the next ones instead of returning it to the system.

    Tiles of a few megabytes come and go thousands of times a step. With glibc's defaults each one is mapped anew, and
    faulting its pages in takes as long as the element-wise work on it. At most some hundred megabytes are kept.
    Without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the highest that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)
        mallopt(_M_TOP_PAD, 64 * 2**20)


def return_freed_memory() -> None:
    """Gives back to the system what glibc keeps, so that what comes next is seen in the resident size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
