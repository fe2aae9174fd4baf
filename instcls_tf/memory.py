"""How the process gets and keeps memory."""

from __future__ import annotations

import ctypes

# Names and numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def reuse_freed_memory() -> None:
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
