"""Large float32 products in the tile registers of AMX (`jmp_model.amx`) against those of torch, in one run.

    OMP_NUM_THREADS=2 python -m benchmarks.products [--rows 3296 8874] [--width 512] [--rounds 8]

The three products of a dense layer: its output, the gradient of its input and that of its weight. Both ways take turns;
each goes through many matrices, so that none is in the cache. Best and median milliseconds, and the error against
float64 relative to the size of the result.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from jmp_model import amx
from jmp_model.memory import keep_freed_memory

_COPIES = 12
Multiply = Callable[[Tensor, Tensor], Tensor]
WAYS: dict[str, Multiply] = {"torch": torch.mm, "amx": amx.multiply}


def products(rows: int, width: int) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Factors of the three products, as a backward pass meets them."""
    x, gradient = (torch.randn(_COPIES, rows, width).unbind() for _ in range(2))
    weight = torch.randn(width, width)
    return {
        "output": [(one, weight.t()) for one in x],
        "gradient of input": [(one, weight) for one in gradient],
        "gradient of weight": [(one.t(), other) for one, other in zip(gradient, x, strict=True)],
    }


def milliseconds(factors: list[tuple[Tensor, Tensor]], rounds: int) -> dict[str, list[float]]:
    """Sorted times of each way."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, multiply in WAYS.items():
            for a, b in factors:
                start = time.perf_counter()
                multiply(a, b)
                times[way].append(1e3 * (time.perf_counter() - start))
    return {way: sorted(found) for way, found in times.items()}


def error(multiply: Multiply, a: Tensor, b: Tensor) -> float:
    exact = a.double() @ b.double()
    return float((multiply(a, b) - exact).norm() / exact.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[3296, 8874])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    if not amx.tiles_are_available():
        print("this processor has no AMX, or it may not be used here: nothing to measure")
        return
    keep_freed_memory()
    print(f"{'product':20} {'rows':>6}  {'way':6} {'best, ms':>9} {'median':>7} {'torch : this':>13} {'error':>8}")
    for rows in args.rows:
        for name, factors in products(rows, args.width).items():
            times = milliseconds(factors, args.rounds)
            for way, found in times.items():
                middle = statistics.median(found)
                ratio = statistics.median(times["torch"]) / middle
                figures = f"{found[0]:9.2f} {middle:7.2f} {ratio:13.2f} {error(WAYS[way], *factors[0]):8.1e}"
                print(f"{name:20} {rows:6}  {way:6} {figures}")


if __name__ == "__main__":
    main()
