"""JMP-S and JMP-L on a GPU: time, memory and numbers of a training step, against the original formulation.

    python benchmarks/gpu/model.py [--json] [--sizes small large] [--rounds 5]
    python benchmarks/gpu/model.py --smoke          # a tiny model on the CPU, to see that it runs to its end

Speed: forward and backward pass with the loss of pre-training, for an OC20-like batch of slabs and an ANI-like batch of
molecules. Every variant does the same step in the same process, one after the other in each round; the median of the
rounds counts. `original` is `reference_gemnet`, eager; `ours` reads all heads as it does; `ours, own heads` is our
training step; `ours, recomputed` keeps only what passes between blocks; `ours, compiled` runs its blocks through
torch.compile with dynamic shapes. Host round trips of our step are counted by PyTorch's own synchronisation check.

Numbers: the same model and batch in each precision against float64 on the CPU, relative to the largest magnitude.
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
from jmp_model.model import PretrainingModel, recompute_blocks
from jmp_model.train.compilation import compile_blocks

PRECISIONS = ("float32", "tf32", "bf16")
VARIANTS = ("original", "ours", "ours, own heads", "ours, recomputed", "ours, compiled")
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


def prepare(variant: str, model: PretrainingModel) -> nn.Module:
    recompute_blocks(model, variant == "ours, recomputed")
    if variant == "original":
        return ReferenceGemNet(model).train()
    if variant == "ours, compiled":
        compile_blocks(model)
    return model


def step(net: nn.Module, model: nn.Module, variant: str, inputs: ModelInputs, precision: str) -> None:
    device = inputs.positions.device.type
    heads = "ours, own heads" if variant.startswith("ours,") else variant
    # All variants share one model, whose blocks stay compiled once they are.
    stance = "default" if variant == "ours, compiled" else "force_eager"
    with precision_of(precision, device), torch.compiler.set_stance(stance):
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
    size: str, batch: str, count: int, precision: str, variants: list[str], device: str, rounds: int
) -> list[Timing]:
    """Median seconds of each variant; those that fail say why and drop out."""
    model = build_model(size).to(device).train()
    inputs = BATCHES[batch](count).to(device)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    peaks: dict[str, float | None] = {}
    trips: dict[str, int | None] = {}
    failures: dict[str, str] = {}
    nets: dict[str, nn.Module] = {}
    for number in range(rounds + 1):
        for variant in variants:
            if variant in failures:
                continue
            net = nets.setdefault(variant, prepare(variant, model))
            recompute_blocks(model, variant == "ours, recomputed")
            model.backbone.one_block = variant == "ours, compiled"

            def run(net: nn.Module = net, variant: str = variant) -> None:
                step(net, model, variant, inputs, precision)

            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            try:
                run()
                synchronize(device)
            except (RuntimeError, TypeError, ValueError, AttributeError, ImportError) as error:
                # A variant that a machine cannot run (memory, compiler) must not hide the others.
                failures[variant] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                model.zero_grad(set_to_none=True)
                continue
            if number:
                seconds[variant].append(time.perf_counter() - start)
                peaks[variant] = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
            elif variant != "ours, compiled":
                trips[variant] = round_trips(run, device)
    base = statistics.median(seconds["original"]) if seconds.get("original") else None
    results = []
    for variant in variants:
        median = statistics.median(seconds[variant]) if seconds[variant] else None
        results.append(
            Timing(
                size=size,
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
        )
    return results


def compare_numbers(size: str, batch: str, count: int, precisions: list[str], device: str) -> list[dict[str, Any]]:
    """Largest error of energies and forces in each precision, of our model and of the original formulation."""
    exact_model, inputs = build_model(size).double().eval(), BATCHES[batch](count)
    with torch.no_grad():
        exact = exact_model(inputs.with_dtype(torch.float64))
    del exact_model
    model, inputs = build_model(size).eval().to(device), inputs.to(device)
    rows = []
    for precision in precisions:
        for name, net in (("ours", model), ("original", ReferenceGemNet(model).eval())):
            with torch.no_grad(), precision_of(precision, device):
                found = net(inputs)
            errors = [
                float((ours.double().cpu() - right).abs().max() / right.abs().max())
                for ours, right in zip(found, exact, strict=True)
            ]
            rows.append(
                {"size": size, "batch": batch, "precision": precision, "model": name, "energy": errors[0],
                 "forces": errors[1]}
            )  # fmt: skip
    return rows


def print_tables(timings: list[Timing], numbers: list[dict[str, Any]]) -> None:
    head = f"{'size':6} {'batch':14} {'precision':9} {'variant':17} {'seconds':>9}"
    print(f"{head} {'ratio':>6} {'peak MiB':>9} {'syncs':>5}")
    for t in timings:
        if t.failure:
            print(f"{t.size:6} {t.batch:10}{t.structures:4} {t.precision:9} {t.variant:17} {t.failure}")
            continue
        peak = f"{t.peak_mib:9.0f}" if t.peak_mib else f"{'-':>9}"
        ratio = f"{t.ratio:6.2f}" if t.ratio else f"{'-':>6}"
        trips = "-" if t.host_round_trips is None else t.host_round_trips
        print(
            f"{t.size:6} {t.batch:10}{t.structures:4} {t.precision:9} {t.variant:17} {t.seconds:9.4f} {ratio} {peak} "
            f"{trips:>5}"
        )
    print(f"\n{'size':6} {'batch':10} {'precision':9} {'model':9} {'energy':>9} {'forces':>9}   error against float64")
    for n in numbers:
        print(f"{n['size']:6} {n['batch']:10} {n['precision']:9} {n['model']:9} {n['energy']:9.1e} {n['forces']:9.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=["tiny", *COUNTS], default=list(COUNTS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5, help="timed steps per variant, after one to warm up")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny model on the CPU, one round; times mean nothing")
    parser.add_argument("--numbers-only", action="store_true", help="leave out the timing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    sizes, device, rounds, counts = args.sizes, args.device, args.rounds, {**COUNTS, **SMOKE_COUNTS}
    variants, precisions = args.variants, args.precisions
    if args.smoke:
        sizes, device, rounds = ["tiny"], "cpu", 1
        variants = [variant for variant in variants if variant != "ours, compiled"]
    if device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "no GPU here; --smoke runs a tiny model on the CPU\n")
    if device == "cpu":
        precisions = [name for name in precisions if name != "tf32"]
    timings = [
        timing
        for size in ([] if args.numbers_only else sizes)
        for batch in BATCHES
        for precision in precisions
        for timing in time_variants(size, batch, counts[size][batch], precision, variants, device, rounds)
    ]
    numbers = [row for size in sizes for batch, n in (("slabs", 1), ("molecules", 4))
               for row in compare_numbers(size, batch, n, precisions, device)]  # fmt: skip
    if args.json:
        about = {"device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or device,
                 "torch": torch.__version__, "command": sys.argv}  # fmt: skip
        print(json.dumps({**about, "timings": [asdict(t) for t in timings], "numbers": numbers}, indent=1))
    else:
        print_tables(timings, numbers)


if __name__ == "__main__":
    main()
