"""Keeps freed memory in the process, so that the next step need not have it cleared by the system again.

glibc gives every large block back to the system when it is freed. A training step on the CPU allocates and frees some
thousand blocks of many megabytes, and each costs a page fault for every 4 KiB when it is used next.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_THRESHOLD = 32 << 20
"""What glibc accepts at most."""
_KEPT = (1 << 31) - 1
_GROWTH = 256 << 20


def keep_freed_memory() -> bool:
    """Let the allocator of this process keep what is freed, up to 2 GiB at the end of its heap.

    Returns:
        Whether it could be done: only with glibc, and not while another allocator is preloaded.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _GROWTH))
    return all(bool(mallopt(ctypes.c_int(name), ctypes.c_int(value))) for name, value in settings)
