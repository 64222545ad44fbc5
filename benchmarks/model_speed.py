"""Forward and backward pass of JMP-S on the CPU, ours against the original formulation, in one run.

    python -m benchmarks.model_speed [--rounds 3] [--batches slabs4 molecules16] [--variants original ours] [--out FILE]

Each measurement is a process of its own, so that its peak memory is its own; the variants take turns, so that a change
in the load of the machine meets all of them. Reported are the best wall time and the best CPU time of all rounds, in
seconds, and the ratios. CPU time with one thread is the steadier of the two on a machine that others use.

Variants: `original`, see `reference_gemnet`; `ours`, all four heads for every structure, same outputs; `ours, own
heads`, as in training, where each structure's loss reads the head of its own task. Ours run as our training does, with
`keep_freed_memory` and `flushed_denormals`; `original, same process` is the original with both.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.model_inputs import molecules, slabs
from benchmarks.reference_gemnet import ReferenceGemNet
from jmp_model.denormals import flushed_denormals
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.scaling import scale_factors
from jmp_model.memory import keep_freed_memory
from jmp_model.model import PretrainingModel
from jmp_model.presets import preset

BATCHES = {"slabs4": lambda: slabs(4), "molecules16": lambda: molecules(16)}
VARIANTS = ("original", "original, same process", "ours", "ours, own heads")
_TYPICAL_SCALES = {"scale_rbf": 9.0, "scale_cbf": 28.0, "scale_cbf_sum": 4.5, "scale_sbf_sum": 7.0, "scale_sum": 0.8,
                   "scale_rbf_F": 8.5, "scale_rbf_sum": 0.5}  # fmt: skip


def build_model(size: str = "small", *, seed: int = 0, **changes: Any) -> PretrainingModel:
    """Random weights, and scale factors of the size of the released ones."""
    torch.manual_seed(seed)
    model = PretrainingModel(preset(size, **changes))
    for name, factor in scale_factors(model):
        factor.set(_TYPICAL_SCALES[name.rsplit(".", 1)[-1]])
    return model


def evaluate(net: torch.nn.Module, variant: str, inputs: ModelInputs) -> torch.Tensor:
    """A scalar loss that reads, of each structure, the head of its task."""
    tasks = torch.arange(inputs.num_structures, device=inputs.positions.device) % 4
    energy, forces = net(inputs, task_index=tasks) if variant == "ours, own heads" else net(inputs)
    energy = energy.gather(1, tasks[:, None])
    forces = forces.gather(2, tasks[inputs.batch][:, None, None].expand(-1, 3, 1))
    loss: torch.Tensor = energy.abs().mean() + forces.norm(dim=1).mean()
    return loss


def measure(variant: str, batch: str, repeats: int) -> dict[str, Any]:
    """Times of one variant in this process."""
    if variant == "original":
        return _measure(variant, batch, repeats)
    keep_freed_memory()
    with flushed_denormals():
        return _measure(variant, batch, repeats)


def _measure(variant: str, batch: str, repeats: int) -> dict[str, Any]:
    model = build_model()
    net = ReferenceGemNet(model) if variant.startswith("original") else model
    net.train()
    inputs = BATCHES[batch]()

    def forward() -> None:
        with torch.no_grad():
            evaluate(net, variant, inputs)

    def step() -> float:
        loss = evaluate(net, variant, inputs)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    result: dict[str, Any] = {"variant": variant, "batch": batch}
    for name, function in (("step", step), ("forward", forward)):
        result["loss"] = function() or result["loss"]
        spent = []
        for _ in range(repeats):
            start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            function()
            after = resource.getrusage(resource.RUSAGE_SELF)
            system = after.ru_stime - used.ru_stime
            spent.append((time.perf_counter() - start, after.ru_utime - used.ru_utime + system, system))
        for number, kind in enumerate(("wall", "cpu", "sys")):
            result[f"{name}_{kind}_s"] = min(entry[number] for entry in spent)
    result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def run_in_process(variant: str, batch: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.model_speed", "--measure", variant, "--batches", batch]
    output = subprocess.run([*command, "--repeats", str(repeats)], check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {key: min(r[key] for r in rounds) for key in rounds[0] if key not in ("variant", "batch", "loss")}
    return {"variant": rounds[0]["variant"], "batch": rounds[0]["batch"], "loss": rounds[0]["loss"], **numbers}


def print_table(results: list[dict[str, Any]]) -> None:
    base = {r["batch"]: r for r in results if r["variant"] == "original"}
    columns = ("forward_wall_s", "step_wall_s", "step_cpu_s", "step_sys_s", "peak_rss_mib")
    print(f"{'batch':12} {'variant':21} " + " ".join(f"{c:>22}" for c in columns) + "   loss")
    for r in results:
        cells = [f"{r[c]:9.2f} ({base[r['batch']][c] / max(r[c], 1e-9):6.2f} ×)" for c in columns]
        print(f"{r['batch']:12} {r['variant']:21} " + " ".join(f"{c:>22}" for c in cells) + f"   {r['loss']:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes per variant")
    parser.add_argument("--repeats", type=int, default=2, help="timed calls per process, after one to warm up")
    parser.add_argument("--batches", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.batches[0], args.repeats)))
        return
    results = []
    for batch in args.batches:
        rounds: dict[str, list[dict[str, Any]]] = {variant: [] for variant in args.variants}
        for _ in range(args.rounds):
            for variant in args.variants:
                rounds[variant].append(run_in_process(variant, batch, args.repeats))
        results += [best(found) for found in rounds.values()]
    print_table(results)
    if args.out:
        about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.processor(),
                 "threads": torch.get_num_threads(), "torch": torch.__version__, "command": sys.argv}  # fmt: skip
        args.out.write_text(json.dumps({**about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
