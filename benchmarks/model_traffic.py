"""What a training step of JMP-S asks of any machine: kernels, memory traffic and matrix products, counted, not timed.

    python -m benchmarks.model_traffic [--batches slabs molecules] [--structures 2]

Every operation of a forward and backward pass is counted: once, with the bytes of the tensors that it reads and writes
(of a gather only the rows that it takes), and with the floating-point operations of matrix products. Views are no work.
`original` is `reference_gemnet`, `ours` our training step, `ours, one block` the same with all atoms padded alike, as a
compiled program needs. Counts of a CPU, which cuts other blocks than a GPU; how long they take is not said here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.model_inputs import molecules, slabs
from benchmarks.model_speed import build_model, evaluate
from benchmarks.reference_gemnet import ReferenceGemNet

BATCHES = {"slabs": slabs, "molecules": molecules}
VARIANTS = ("original", "ours", "ours, one block")
_GATHERS = (torch.ops.aten.index_select, torch.ops.aten.index, torch.ops.aten.gather)
_NO_WORK = (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten.empty_strided)


@dataclass
class Traffic(TorchDispatchMode):
    """Counts what runs while it is entered."""

    kernels: int = 0
    bytes: int = 0
    flop: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if func.is_view or packet in _NO_WORK or packet is torch.ops.aten.detach:
            return out
        self.kernels += 1
        read = _bytes(out) if packet in _GATHERS else _bytes((args, list(kwargs.values())))
        self.bytes += read + _bytes(out)
        if packet in flop_registry:
            self.flop += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(entry) for entry in value) if isinstance(value, list | tuple) else 0


def count(variant: str, batch: str, structures: int) -> Traffic:
    """Kernels, bytes and operations of one step."""
    model = build_model().train()
    model.backbone.one_block = variant == "ours, one block"
    net = ReferenceGemNet(model).train() if variant == "original" else model
    heads = variant if variant == "original" else "ours, own heads"
    inputs = BATCHES[batch](structures)
    with Traffic() as traffic:
        evaluate(net, heads, inputs).backward()
    return traffic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--structures", type=int, default=2)
    args = parser.parse_args()
    print(f"{'batch':12} {'variant':16} {'work':>8} {'GB':>8} {'GFLOP':>8} {'bytes, original : this':>24}")
    for batch in args.batches:
        original = None
        for variant in VARIANTS:
            found = count(variant, batch, args.structures)
            original = original or found
            numbers = f"{found.kernels:8} {found.bytes / 1e9:8.1f} {found.flop / 1e9:8.0f}"
            print(f"{batch:12} {variant:16} {numbers} {original.bytes / found.bytes:24.2f}")


if __name__ == "__main__":
    main()
