"""Products of large float32 matrices in the tile registers of AMX, on the threads that torch computes with."""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from jmp_data.kernel_cache import ensure_kernel_cache

_FEATURES = ("amx-tile", "amx-bf16", "avx512f", "avx512bw")
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # Linux on x86-64

_WORTHWHILE = 1 << 28  # multiplications, below which the matrix library is as fast
_SHORTEST = 256
_ROWS_AT_ONCE = 64  # whose panels stay in the second-level cache, beside those of 512 columns
_EDGE = 512  # rows and columns of a result whose sums stay there too
_DEPTH_AT_ONCE = 128  # whose panels stay beside them


@cache
def tiles_are_available() -> bool:
    """Whether this process may use AMX: the processor has it, the system grants it, and Numba compiles for it.

    Setting NUMBA_CPU_NAME or NUMBA_CPU_FEATURES, with which Numba compiles for other processors, turns it off.
    """
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    from llvmlite import binding
    from numba import config

    if config.DISABLE_JIT or config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return False
    ensure_kernel_cache()
    features = binding.get_host_cpu_features()
    process = ctypes.CDLL(None)
    if not all(features.get(name) for name in _FEATURES) or not hasattr(process, "GOMP_parallel"):
        return False
    return bool(process.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def fits(a: Tensor, b: Tensor, addend: Tensor | None = None) -> bool:
    """Whether `multiply` can multiply these matrices, and in less time than the matrix library.

    What does not go together is left to PyTorch, which says so, and so are operations that a dispatch mode watches.
    """
    if a.dim() != 2 or b.dim() != 2:
        return False
    rows, depth, columns = *a.shape, b.shape[1]
    if min(rows, depth, columns) < _SHORTEST or rows * depth * columns < _WORTHWHILE or depth != b.shape[0]:
        return False
    given = [x for x in (a, b, addend) if x is not None]
    if not all(_is_plain(x) for x in given) or not (addend is None or _is_addend(addend, rows, columns)):
        return False
    return 1 in a.stride() and 1 in b.stride() and tiles_are_available() and not is_in_torch_dispatch_mode()


def _is_plain(x: Tensor) -> bool:
    """Whether float32 numbers of the CPU lie where x says."""
    ordinary = type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.dtype == torch.float32
    return ordinary and not x.is_neg() and x.data_ptr() != 0


def _is_addend(x: Tensor, rows: int, columns: int) -> bool:
    return x.shape in ((columns,), (rows, columns)) and x.stride(-1) == 1


def multiply(
    a: Tensor,
    b: Tensor,
    *,
    gain: float = 1.0,
    addend: Tensor | None = None,
    beta: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """gain·a·b + beta·addend to the accuracy of float32, without a gradient.

    Parts of numbers below 1.2e-38 count as zero, so that factors below about 1e-30 have fewer digits; an infinite
    factor gives NaN. The order of summation depends on the shapes and on the number of threads, as it does in the
    matrix library, and on nothing else.

    Args:
        a: (rows, depth); b: (depth, columns), float32, on the CPU, next to each other along one of their dimensions.
        gain: factor of the product.
        addend: (rows, columns) or (columns,), with columns next to each other.
        beta: factor of addend.
        out: (rows, columns) to write to, with columns next to each other; may be addend.

    Raises:
        ValueError: the shapes do not go together, or are empty.
        RuntimeError: this process may not use AMX.
    """
    rows, depth, columns = *a.shape, b.shape[1]
    out = a.new_empty(rows, columns) if out is None else out
    others = [x for x in (addend, out) if x is not None]
    if b.shape[0] != depth or 0 in (rows, depth, columns) or not all(_is_addend(x, rows, columns) for x in others):
        raise ValueError(
            f"cannot multiply {tuple(a.shape)} by {tuple(b.shape)} with {[tuple(x.shape) for x in others]}"
        )
    if not tiles_are_available():
        raise RuntimeError("this process may not use AMX: ask tiles_are_available() first")
    from jmp_model.amx import kernel

    jobs = np.zeros(1, kernel.JOB)
    job = jobs[0]
    job["rows"], job["columns"], job["depth"] = rows, columns, depth
    job["a"], job["a_row_stride"], job["a_k_stride"] = a.data_ptr(), *a.stride()
    job["b"], job["b_k_stride"], job["b_column_stride"] = b.data_ptr(), *b.stride()
    job["out"], job["out_row_stride"] = out.data_ptr(), out.stride(0)
    if addend is not None:
        job["addend"], job["addend_row_stride"] = addend.data_ptr(), addend.stride(0) if addend.dim() == 2 else 0
    job["gain"], job["beta"] = gain, beta
    job["tile_shapes"] = _TILE_SHAPES.ctypes.data
    (_multiply_long if depth > rows else _multiply_tall)(jobs, kernel)
    return out


def _multiply_tall(jobs: Any, kernel: Any) -> None:
    """All of b is packed once, then each task multiplies some rows of a."""
    job, threads = jobs[0], torch.get_num_threads()
    panel = kernel.PARTS * kernel.TILE_BYTES * _ceil(job["depth"], kernel.TILE_K)
    step = _ROWS_AT_ONCE
    while step > kernel.BLOCK and _ceil(job["rows"], step) < 2 * threads:
        step //= 2
    column_blocks = _ceil(job["columns"], kernel.BLOCK)
    packed, scratch = 2 * column_blocks * panel, 2 * kernel.BLOCK_BYTES + step // kernel.LANES * panel
    job["packed"] = _workspace.take(packed + threads * scratch)
    job["scratch"], job["scratch_bytes"] = job["packed"] + packed, scratch
    _on_all_threads(kernel.pack_columns, jobs, column_blocks)
    job["task_size"] = step
    _on_all_threads(kernel.multiply_rows, jobs, _ceil(job["rows"], step))


def _multiply_long(jobs: Any, kernel: Any) -> None:
    """Each task sums over a run of k for a part of the result; then runs are added."""
    job, threads = jobs[0], torch.get_num_threads()
    longest = kernel.BLOCK * _ceil(max(job["rows"], job["columns"]), kernel.BLOCK)
    job["edge"] = edge = min(_EDGE, longest)
    pieces = _ceil(job["rows"], edge) * _ceil(job["columns"], edge)
    job["num_runs"] = runs = _ceil(threads, pieces)
    sums = 4 * edge * edge * pieces * runs
    panel = kernel.PARTS * kernel.TILE_BYTES * _DEPTH_AT_ONCE // kernel.TILE_K
    scratch = kernel.BLOCK_BYTES + 2 * edge // kernel.LANES * panel
    job["sums"] = _workspace.take(sums + threads * scratch)
    job["scratch"], job["scratch_bytes"] = job["sums"] + sums, scratch
    job["task_size"] = _DEPTH_AT_ONCE
    _on_all_threads(kernel.multiply_depth, jobs, pieces * runs)
    _on_all_threads(kernel.add_runs, jobs, _ceil(job["rows"], kernel.BLOCK))


def _ceil(a: int, b: int) -> int:
    return -(-int(a) // b)


def _on_all_threads(tasks: Any, jobs: Any, number: int) -> None:
    """Run compiled tasks on the OpenMP threads that torch uses: others would compete with them."""
    jobs["next_task"] = jobs["next_scratch"] = 0
    jobs["num_tasks"] = number
    _team()(tasks.address, jobs.ctypes.data, torch.get_num_threads(), 0)


@cache
def _team() -> Callable[[int, int, int, int], None]:
    """OpenMP's own entry for a parallel region: outlined function, its argument, number of threads, flags."""
    entry = ctypes.CDLL(None).GOMP_parallel
    entry.argtypes, entry.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return entry


class _Workspace(threading.local):
    """Memory of a calling thread, which grows to what its largest product needs."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, size: int) -> int:
        """Address of `size` bytes, at the start of a line of the cache, until the next call."""
        if self._block.numel() < size + 64:
            self._block = torch.empty(size + 64, dtype=torch.uint8, device="cpu")
        return _ceil(self._block.data_ptr(), 64) * 64


def _tile_shapes() -> Any:
    """What the tile registers are set up with: 16 rows of 64 bytes in each of eight."""
    shapes = np.zeros(64, np.uint8)
    shapes[0] = 1
    shapes[16:32].view(np.uint16)[:] = 64
    shapes[48:56] = 16
    return shapes


_workspace = _Workspace()
_TILE_SHAPES = _tile_shapes()
