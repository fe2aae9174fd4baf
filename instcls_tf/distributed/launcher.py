"""What the launcher told this process about itself, read before TensorFlow or Horovod is loaded."""

from __future__ import annotations

import os

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
