"""JMP-S and JMP-L on a GPU: time, memory and numbers of a training step, against the original formulation.

    python benchmarks/gpu/model.py [--json] [--sizes small large] [--rounds 5]
    python benchmarks/gpu/model.py --smoke          # a tiny model on the CPU, to see that it runs to its end

Speed: forward and backward pass with the loss of pre-training, for an OC20-like batch of slabs and an ANI-like batch of
molecules. Every variant does the same step in the same process, one after the other in each round; the median of the
rounds counts. `original` is `reference_gemnet`, eager; `ours` reads all heads as it does; `ours, own heads` is our
training step; `ours, recomputed` keeps only what passes between blocks; `ours, compiled` runs its blocks through
torch.compile with dynamic shapes, and, only where asked for, `ours, tuned` does with products chosen by trial
(max-autotune), which takes minutes. Host round trips are counted by PyTorch's own synchronisation check.

Numbers: the same model and batch in each precision against float64 on the CPU, relative to the largest magnitude.

Each line of the output, JSON or not, is written when it is known: a run that is cut off has told what it found.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.model_inputs import molecules, slabs
from benchmarks.model_speed import build_model, evaluate
from benchmarks.reference_gemnet import ReferenceGemNet
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.model import recompute_blocks
from jmp_model.train.compilation import COMPILED, compile_blocks

PRECISIONS = ("float32", "tf32", "bf16")
MODES = {"ours, compiled": None, "ours, tuned": "max-autotune-no-cudagraphs"}
VARIANTS = ("original", "ours", "ours, own heads", "ours, recomputed", *MODES)
BATCHES: dict[str, Callable[[int], ModelInputs]] = {"slabs": slabs, "molecules": molecules}
COUNTS = {"small": {"slabs": 16, "molecules": 96}, "large": {"slabs": 6, "molecules": 32}}
SMOKE_COUNTS = {"tiny": {"slabs": 1, "molecules": 2}}


@dataclass(frozen=True)
class Timing:
    """One variant."""

    size: str
    batch: str
    structures: int
    precision: str
    variant: str
    seconds: float | None
    structures_per_second: float | None
    ratio: float | None
    peak_mib: float | None
    host_round_trips: int | None
    failure: str | None = None


@dataclass(frozen=True)
class Numbers:
    """Errors of one model in one precision, relative to the largest magnitude."""

    size: str
    batch: str
    precision: str
    model: str
    energy: float
    forces: float


@contextmanager
def precision_of(name: str, device: str) -> Iterator[None]:
    """Precision of matrix products: float32, TF32 (a GPU only), or bfloat16 by autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(device, torch.bfloat16) if name == "bf16" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Contest:
    """One model and all its variants; what is compiled once serves every batch."""

    def __init__(self, size: str, device: str) -> None:
        self.size = size
        self.device = device
        self.model = build_model(size).to(device).train()
        self.original = ReferenceGemNet(self.model).train()
        self.forwards: dict[str, list[Any]] = {}

    def enter(self, variant: str) -> nn.Module:
        """Make the model what the variant is; returns what to call."""
        recompute_blocks(self.model, variant == "ours, recomputed")
        self.model.backbone.one_block = variant in MODES
        blocks = [module for module in self.model.modules() if isinstance(module, COMPILED)]
        for block in blocks:
            block.__dict__.pop("forward", None)
        if variant in self.forwards:
            for block, forward in zip(blocks, self.forwards[variant], strict=True):
                block.forward = forward
        elif variant in MODES:
            compile_blocks(self.model, mode=MODES[variant])
            self.forwards[variant] = [block.forward for block in blocks]
        return self.original if variant == "original" else self.model


def step(net: nn.Module, model: nn.Module, variant: str, inputs: ModelInputs, precision: str) -> None:
    heads = "ours, own heads" if variant.startswith("ours,") else variant
    with precision_of(precision, inputs.positions.device.type):
        loss = evaluate(net, heads, inputs)
    loss.backward()
    model.zero_grad(set_to_none=True)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def round_trips(run: Callable[[], None], device: str) -> int | None:
    if device != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(entry.message) for entry in found)


def time_variants(
    contest: Contest, batch: str, count: int, precision: str, variants: list[str], rounds: int
) -> Iterator[Timing]:
    """Median seconds of each variant; those that fail say why and drop out."""
    device = contest.device
    inputs = BATCHES[batch](count).to(device)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    peaks: dict[str, float | None] = {}
    trips: dict[str, int | None] = {}
    failures: dict[str, str] = {}
    for number in range(rounds + 1):
        for variant in variants:
            if variant in failures:
                continue
            net = contest.enter(variant)

            def run(net: nn.Module = net, variant: str = variant) -> None:
                step(net, contest.model, variant, inputs, precision)

            try:
                if not number:
                    run()
                    trips[variant] = round_trips(run, device)
                    continue
                synchronize(device)
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
                run()
                synchronize(device)
                seconds[variant].append(time.perf_counter() - start)
                peaks[variant] = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
            except (RuntimeError, TypeError, ValueError, AttributeError, ImportError) as error:
                # A variant that a machine cannot run (memory, compiler) must not hide the others.
                failures[variant] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                contest.model.zero_grad(set_to_none=True)
    base = statistics.median(seconds["original"]) if seconds.get("original") else None
    for variant in variants:
        median = statistics.median(seconds[variant]) if seconds[variant] else None
        yield Timing(
            size=contest.size,
            batch=batch,
            structures=count,
            precision=precision,
            variant=variant,
            seconds=median,
            structures_per_second=count / median if median else None,
            ratio=base / median if base and median else None,
            peak_mib=peaks.get(variant),
            host_round_trips=trips.get(variant),
            failure=failures.get(variant),
        )


def compare_numbers(size: str, batch: str, count: int, precisions: list[str], device: str) -> Iterator[Numbers]:
    """Largest error of energies and forces in each precision, of our model and of the original formulation."""
    exact_model, inputs = build_model(size).double().eval(), BATCHES[batch](count)
    with torch.no_grad():
        exact = exact_model(inputs.with_dtype(torch.float64))
    del exact_model
    model, inputs = build_model(size).eval().to(device), inputs.to(device)
    for precision in precisions:
        for name, net in (("ours", model), ("original", ReferenceGemNet(model).eval())):
            with torch.no_grad(), precision_of(precision, device):
                found = net(inputs)
            energy, forces = (
                float((ours.double().cpu() - right).abs().max() / right.abs().max())
                for ours, right in zip(found, exact, strict=True)
            )
            yield Numbers(size=size, batch=batch, precision=precision, model=name, energy=energy, forces=forces)


def describe(row: Timing | Numbers) -> str:
    if isinstance(row, Numbers):
        where = f"{row.size:6} {row.batch:10} {row.precision:9} {row.model:9}"
        return f"{where} error against float64: energy {row.energy:.1e}, forces {row.forces:.1e}"
    where = f"{row.size:6} {row.batch:10}{row.structures:4} {row.precision:9} {row.variant:17}"
    if row.failure or row.seconds is None:
        return f"{where} {row.failure}"
    ratio = f"{row.ratio:6.2f} ×" if row.ratio else f"{'-':>8}"
    peak = f"{row.peak_mib:.0f} MiB" if row.peak_mib else "-"
    trips = "-" if row.host_round_trips is None else row.host_round_trips
    return f"{where} {row.seconds:9.4f} s {ratio} {peak:>12} {trips:>4} host round trips"


def measure(
    sizes: list[str], precisions: list[str], variants: list[str], device: str, rounds: int, *, timed: bool
) -> Iterator[Timing | Numbers]:
    counts = {**COUNTS, **SMOKE_COUNTS}
    for size in sizes:
        if timed:
            contest = Contest(size, device)
            for precision in precisions:
                for batch in BATCHES:
                    yield from time_variants(contest, batch, counts[size][batch], precision, variants, rounds)
            del contest
        for batch, count in (("slabs", 1), ("molecules", 4)):
            yield from compare_numbers(size, batch, count, list(dict.fromkeys((*precisions, "float32"))), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=["tiny", *COUNTS], default=list(COUNTS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["bf16", "tf32"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[v for v in VARIANTS if v != "ours, tuned"])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps per variant, after one to warm up")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny model on the CPU, one round; times mean nothing")
    parser.add_argument("--numbers-only", action="store_true", help="leave out the timing")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    args = parser.parse_args()
    sizes, device, rounds, precisions = args.sizes, args.device, args.rounds, args.precisions
    if args.smoke:
        sizes, device, rounds = ["tiny"], "cpu", 1
    if device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "no GPU here; --smoke runs a tiny model on the CPU\n")
    if device == "cpu":
        precisions = [name for name in precisions if name != "tf32"]
    about = {"device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or device,
             "torch": torch.__version__, "command": sys.argv}  # fmt: skip
    print(json.dumps(about) if args.json else about, flush=True)
    for row in measure(sizes, precisions, args.variants, device, rounds, timed=not args.numbers_only):
        print(json.dumps(asdict(row)) if args.json else describe(row), flush=True)


if __name__ == "__main__":
    main()
