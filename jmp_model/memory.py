"""Keeps freed memory in the process, in huge pages, so that the next step need not take it from the system again.

glibc gives every large block back when it is freed. A training step on the CPU takes and frees some thousand blocks of
many megabytes: each costs a page fault for every 4 KiB when it is used next, and a search in the page tables for every
4 KiB whenever it is read. With pages of 2 MiB that stay both are rare (docs/model-speed.md).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20


@cache
def keep_freed_memory() -> bool:
    """Let the allocator of this process keep what is freed, in huge pages where the system grants them.

    Memory is taken when it is used and not before, but then it stays with the process to its end.

    Returns:
        Whether the C library takes such settings, as glibc does; another allocator in its place does not follow them.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    # No block is too large for the heap, and the heap never shrinks.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    kept = all(bool(mallopt(ctypes.c_int(name), ctypes.c_int(value))) for name, value in settings)
    if kept:
        _ask_for_huge_pages(libc)
    return kept


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Extend the heap by addresses for half of the physical memory, which nothing stands behind until they are used."""
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    block = libc.malloc(size)
    if not block:
        return
    first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(first, (block + size - first) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
    libc.free(block)
