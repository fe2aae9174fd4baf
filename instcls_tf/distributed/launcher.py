"""What the launcher told this process about itself, read before TensorFlow or Horovod is loaded."""

from __future__ import annotations

import os

from instcls_tf.errors import UserError

# (rank, size) as set by horovodrun over Gloo, Open MPI, MPICH and Intel MPI, and by Slurm's `srun --mpi=pmix`.
_VARIABLES = (
    ("HOROVOD_RANK", "HOROVOD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "SLURM_NTASKS"),
)


def launched_rank_and_size() -> tuple[int, int] | None:
    """`(rank, number of workers)` under horovodrun, mpirun or srun; None in a process started by hand."""
    for rank, size in _VARIABLES:
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return None


def refuse_several(command: str, workers_flag: str = "") -> None:
    """For what one process does alone: several of a launcher would each do all of it, or disturb each other.

    Args:
      command: as its user calls it.
      workers_flag: the name of the flag that tells it of several workers, if there is one.

    Raises:
      UserError: a launcher has started several workers.
    """
    _, size = launched_rank_and_size() or (0, 1)
    if size > 1:
        instead = f", with --{workers_flag}={size}" if workers_flag else ""
        raise UserError(f"{command}: is done by one process, not by {size}: start it without a launcher{instead}")
