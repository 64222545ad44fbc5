"""Batched graphs on the GPU: time and memory per batch, against the original's method and nvalchemi-toolkit-ops.

    python benchmarks/gpu/graphs.py [--batch 32] [--rounds 20] [--device cuda] [--json]

"original's method" is written from its description: all pairs of a batch through the images that its most demanding
structure needs, then a sort of neighbour rows padded to the longest. It searches one graph; the other three would cost
three more sorts. "kernel and copy" is the compiled CPU kernel on one thread with the copy of its edges to the device:
what a loader process would do for this batch. Peak memory counts what the call allocates above the inputs. Host round
trips are counted by PyTorch's own synchronisation check. The last column says whether the widest graph has the edges of
the compiled kernel.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.graphs import Case, make_molecule, make_slab
from jmp_data.graphs import GraphSettings, batch_four_graphs, torch_batched

Task = Callable[[], Any]


def original_method(
    positions: Tensor, cell: Tensor, natoms: Tensor, cutoff: float, max_neighbors: int
) -> tuple[Tensor, Tensor]:
    """Fully periodic search without wrapping, as described for the original: edge_index and cell_offsets."""
    device, count = positions.device, natoms.long()
    pairs = count * count
    total = int(pairs.sum())
    structure = torch.repeat_interleave(torch.arange(len(count), device=device), pairs, output_size=total)
    place = torch.arange(total, device=device) - (torch.cumsum(pairs, 0) - pairs)[structure]
    first = (torch.cumsum(count, 0) - count)[structure]
    target, source = first + place // count[structure], first + place % count[structure]
    crosses = torch.stack([torch.linalg.cross(cell[:, i - 2], cell[:, i - 1]) for i in range(3)], 1)
    volume = (cell[:, 0] * crosses[:, 0]).sum(1)
    repeats = torch.ceil(cutoff * crosses.norm(dim=2) / volume.abs()[:, None]).amax(0).long().tolist()
    images = torch.cartesian_prod(*[torch.arange(-r, r + 1, device=device) for r in repeats])
    shifts = images.to(cell.dtype) @ cell
    vectors = (positions[source] - positions[target])[:, None] + shifts[structure]
    squared = vectors.square().sum(2)
    pair, image = torch.nonzero((squared <= cutoff * cutoff) & (squared > 1e-4), as_tuple=True)
    squared, target, source = squared[pair, image], target[pair], source[pair]
    neighbors = torch.bincount(target, minlength=len(positions))
    begin = torch.cumsum(neighbors, 0) - neighbors
    padded = squared.new_full((len(positions), int(neighbors.max())), torch.inf)
    slot = torch.arange(len(target), device=device) - begin[target]
    padded[target, slot] = squared
    order = padded.argsort(dim=1)[:, :max_neighbors]
    kept = (begin[:, None] + order)[torch.gather(padded, 1, order).isfinite()]
    kept = kept.sort().values
    return torch.stack([source[kept], target[kept]]), images[image[kept]]


def contestants(case: Case, device: str) -> dict[str, Task]:
    arrays, settings = case.batch, GraphSettings(cutoff=case.cutoff)
    tags = np.concatenate([atoms.get_tags() for atoms in case.structures])
    positions, cell, pbc, natoms = (torch.from_numpy(array).to(device) for array in arrays)
    tags_there = torch.from_numpy(tags).to(device)

    def kernel_and_copy() -> list[Tensor]:
        graphs = batch_four_graphs(*arrays, tags, settings)
        edges = [getattr(graphs, name) for name in ("a2a", "main", "a2ee2a", "qint")]
        return [torch.from_numpy(a).to(device) for e in edges for a in (e.edge_index, e.cell_offsets)]

    def ours() -> list[Tensor]:
        graphs = torch_batched.batch_four_graphs(positions, cell, pbc, natoms, tags_there, settings)
        return [graphs["a2a"].edge_index, graphs["a2a"].cell_offsets]

    def ours_widest() -> list[Tensor]:
        edges, _ = torch_batched.batch_radius_graph(
            positions, cell, pbc, natoms, cutoff=case.cutoff, max_neighbors=case.max_neighbors
        )
        return [edges.edge_index, edges.cell_offsets]

    tasks: dict[str, Task] = {
        "four graphs, torch": ours,
        "widest graph, torch": ours_widest,
        "four graphs, kernel and copy": kernel_and_copy,
    }
    if arrays[2].all():
        tasks["widest graph, original's method"] = lambda: original_method(
            positions, cell, natoms, case.cutoff, case.max_neighbors
        )
    if importlib.util.find_spec("nvalchemiops"):
        tasks["search alone, nvalchemi"] = nvalchemi_search(positions, cell, pbc, natoms, case.cutoff)
    return tasks


def nvalchemi_search(positions: Tensor, cell: Tensor, pbc: Tensor, natoms: Tensor, cutoff: float) -> Task:
    """Every pair within the cutoff, neither sorted nor truncated, with room for 1000 neighbours of each atom."""
    from nvalchemiops.torch.neighbors import neighbor_list

    ptr = torch.cat([natoms.new_zeros(1), torch.cumsum(natoms, 0)]).int()
    box = torch.where(pbc.any(1)[:, None, None], cell, torch.eye(3, dtype=cell.dtype, device=cell.device) * 1e3)

    def search() -> list[Tensor]:
        pairs, _, offsets = neighbor_list(
            positions, cutoff, cell=box, pbc=pbc, batch_ptr=ptr, max_neighbors=1000, return_neighbor_list=True
        )
        return [pairs.flip(0), offsets]

    return search


def measure(task: Task, device: str, rounds: int) -> dict[str, float]:
    """Median seconds, peak MiB above what was allocated before, and host round trips, of one call."""
    cuda = device.startswith("cuda")

    def synchronize() -> None:
        if cuda:
            torch.cuda.synchronize()

    for _ in range(3):
        task()
    synchronize()
    peak, trips = float("nan"), float("nan")
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            task()
            torch.cuda.set_sync_debug_mode("default")
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        trips = sum("synchroniz" in str(warning.message) for warning in caught)
    seconds = []
    for _ in range(rounds):
        synchronize()
        begin = time.perf_counter()
        task()
        synchronize()
        seconds.append(time.perf_counter() - begin)
    return {"seconds": float(np.median(seconds)), "peak_mib": peak, "host_round_trips": trips}


def edge_set(edges: list[Tensor]) -> set[tuple[int, ...]]:
    rows = torch.cat([edges[0].T.cpu().long(), edges[1].cpu().long()], dim=1)
    return set(map(tuple, rows.tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="slabs per batch; molecules are four times as many")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    options = parser.parse_args()
    cases = [
        Case("slabs of 70 atoms, 12 Å", [make_slab(seed % 8) for seed in range(options.batch)], 12.0, 1000),
        Case("molecules of 10 atoms, 8 Å", [make_molecule(seed) for seed in range(4 * options.batch)], 8.0, 1000),
    ]
    rows = []
    for case in cases:
        tasks = contestants(case, options.device)
        expected = edge_set(list(tasks["four graphs, kernel and copy"]()))
        for name, task in tasks.items():
            agrees = edge_set(list(task())) == expected
            figures = measure(task, options.device, options.rounds)
            rows.append(
                {"case": case.name, "structures": len(case.structures), "what": name, "agrees": agrees, **figures}
            )
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    if options.json:
        print(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1))
        return
    print(
        f"{name}, torch {torch.__version__}\n\ncase | what | ms/batch | structures/s | peak MiB | host trips | agrees"
    )
    print("|".join(["---"] * 7))
    for row in rows:
        print(
            f"{row['structures']} {row['case']} | {row['what']} | {row['seconds'] * 1e3:.2f} | "
            f"{row['structures'] / row['seconds']:,.0f} | {row['peak_mib']:.0f} | {row['host_round_trips']:.0f} | "
            f"{'yes' if row['agrees'] else 'NO'}"
        )


if __name__ == "__main__":
    main()
