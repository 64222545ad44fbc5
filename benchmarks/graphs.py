"""Graphs per second and agreement: every backend on every kind of structure, one thread, from one run.

    python benchmarks/graphs.py [--rounds 7] [--json]

Each round times every contestant once, so that other work on the machine hits all alike; the table holds the best
round, in processor time. "Whole graph" is what training needs: complete, truncated to the nearest neighbours, in
canonical order. "Search alone" is what the libraries do without any of that, and the figure that they are usually
compared by. Agreement counts the structures on which a backend returns the oracle's edges, offsets and order, and its
lengths to the last bit (torch's square root may differ in it); of a search alone, those with exactly the right pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # idle threads of OpenMP spin, and count as processor time

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list
from pymatgen.optimization.neighbors import find_points_in_spheres
from vesin import NeighborList

from jmp_data.graphs import (
    GraphSettings,
    RadiusGraph,
    batch_four_graphs,
    batch_radius_graph,
    pack_four_graphs,
    radius_graph,
    torch_batched,
    unpack_four_graphs,
)

Task = Callable[[], object]
ROUND_SECONDS = 0.1  # of one contestant in one round, so that caches are warm as they are in a loader
ENOUGH_SECONDS = 5.0  # of one contestant on one case; the slowest would take the most of the run
HAS_TORCH_CLUSTER = importlib.util.find_spec("torch_cluster") is not None
HAS_MATSCIPY = importlib.util.find_spec("matscipy") is not None
HAS_NVALCHEMI = importlib.util.find_spec("nvalchemiops") is not None
PACKAGES = ("numpy", "numba", "pymatgen", "vesin", "matscipy", "ase", "torch", "torch_cluster", "nvalchemi-toolkit-ops")


@dataclass(frozen=True)
class Case:
    name: str
    structures: list[Atoms]
    cutoff: float
    max_neighbors: int

    @property
    def batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return (
            np.concatenate([atoms.positions for atoms in self.structures]),
            np.stack([atoms.cell.array for atoms in self.structures]),
            np.stack([atoms.pbc for atoms in self.structures]),
            np.array([len(atoms) for atoms in self.structures]),
        )


def make_slab(seed: int) -> Atoms:
    """64 platinum atoms and methanol, rattled, 20 Å of vacuum: 70 atoms."""
    slab = fcc111("Pt", (4, 4, 4), a=3.92 + 0.01 * seed, vacuum=10.0)
    add_adsorbate(slab, molecule("CH3OH"), 2.0, "ontop")
    slab.set_tags(np.where(slab.get_tags() == 1, 1, np.where(slab.get_tags() == 0, 2, 0)))
    slab.pbc = True
    slab.rattle(0.1, seed=seed)
    return slab


def make_molecule(seed: int) -> Atoms:
    """Acetone, rattled: 10 atoms."""
    atoms = molecule("CH3COCH3")
    atoms.rattle(0.1, seed=seed)
    atoms.set_tags(2)
    return atoms


def make_crystal(seed: int, repeat: int) -> Atoms:
    """Skewed primitive rock salt, rattled: 2 · repeat³ atoms."""
    atoms = bulk("NaCl", "rocksalt", a=5.64 + 0.01 * seed).repeat(repeat)
    atoms.rattle(0.1, seed=seed)
    atoms.set_tags(2)
    return atoms


def make_cases() -> list[Case]:
    slabs = [make_slab(seed) for seed in range(8)]
    return [
        Case("slab, 70 atoms, 12 Å, 30", slabs, 12.0, 30),
        Case("slab, 70 atoms, 12 Å, 1000", slabs, 12.0, 1000),
        Case("molecule, 10 atoms, 8 Å, 30", [make_molecule(seed) for seed in range(64)], 8.0, 30),
        Case("crystal, 2 atoms, 12 Å, 30", [make_crystal(seed, 1) for seed in range(16)], 12.0, 30),
        Case("crystal, 250 atoms, 12 Å, 30", [make_crystal(0, 5)], 12.0, 30),
    ]


def whole_graphs(case: Case) -> Iterator[tuple[str, Task]]:
    """Contestants that return the truncated graph."""

    def one_by_one(backend: Any) -> Task:
        return lambda: [
            radius_graph(
                atoms.positions, atoms.cell.array, atoms.pbc, cutoff=case.cutoff, max_neighbors=case.max_neighbors,
                backend=backend,
            )
            for atoms in case.structures
        ]  # fmt: skip

    batch, tensors = case.batch, tuple(torch.from_numpy(array) for array in case.batch)
    options = {"cutoff": case.cutoff, "max_neighbors": case.max_neighbors}
    yield "numba, batched", lambda: batch_radius_graph(*batch, **options)
    yield "torch, batched, CPU", lambda: torch_batched.batch_radius_graph(*tensors, **options)
    for backend in ("numba", "pymatgen", "vesin", "numpy"):
        yield backend, one_by_one(backend)
    if HAS_TORCH_CLUSTER and not case.batch[2].any():
        yield "torch_cluster", one_by_one("torch_cluster")
    if HAS_NVALCHEMI:
        yield "nvalchemi, CPU", one_by_one("nvalchemi")


def searches_alone(case: Case) -> Iterator[tuple[str, Task]]:
    """The libraries' own searches: every pair within the cutoff, unsorted, untruncated; target, source, offsets."""

    def each(search: Callable[[Atoms], object]) -> Task:
        return lambda: [search(atoms) for atoms in case.structures]

    def pymatgen_alone(atoms: Atoms) -> object:
        cell = atoms.cell.array if atoms.pbc.any() else np.eye(3)
        points = np.ascontiguousarray(atoms.positions)
        return find_points_in_spheres(points, points, case.cutoff, atoms.pbc.astype(np.int64), cell)

    def vesin_alone(atoms: Atoms) -> object:
        neighbors = NeighborList(cutoff=case.cutoff, full_list=True, n_threads=1)
        return neighbors.compute(atoms.positions, atoms.cell.array, atoms.pbc, "ijSd")

    def ase_alone(atoms: Atoms) -> object:
        return primitive_neighbor_list("ijSd", atoms.pbc, atoms.cell.array, atoms.positions, case.cutoff)

    yield "pymatgen", each(pymatgen_alone)
    yield "vesin", each(vesin_alone)
    if HAS_MATSCIPY:
        from matscipy.neighbours import neighbour_list

        boxes = [atoms.cell.array if atoms.pbc.any() else np.eye(3) * 100.0 for atoms in case.structures]
        yield (
            "matscipy",
            lambda: [
                neighbour_list("ijSd", positions=atoms.positions, cell=box, pbc=atoms.pbc, cutoff=case.cutoff)
                for atoms, box in zip(case.structures, boxes, strict=True)
            ],
        )
    yield "ASE", each(ase_alone)
    if HAS_TORCH_CLUSTER and not case.batch[2].any():
        from torch_cluster import radius

        points = [torch.from_numpy(atoms.positions) for atoms in case.structures]
        yield "torch_cluster", lambda: [(*radius(p, p, case.cutoff, max_num_neighbors=len(p)), None) for p in points]


def best_times(tasks: dict[str, Task], rounds: int) -> dict[str, float]:
    """Seconds of processor time of one call of each task, in its best round of many calls."""
    best, spent, calls = dict.fromkeys(tasks, float("inf")), dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, 1)
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            if spent[name] > ENOUGH_SECONDS:
                continue
            begin = time.process_time()
            for _ in range(calls[name]):
                task()
            seconds = time.process_time() - begin
            best[name], spent[name] = min(best[name], seconds / calls[name]), spent[name] + seconds
            calls[name] = max(1, min(1000, int(ROUND_SECONDS / best[name])))
    return best


def count_agreements(case: Case, graphs: object, oracle: list[RadiusGraph]) -> int:
    """Structures on which one graph each, or the edges of a batch, equal the oracle's."""
    if not isinstance(graphs, list):
        graphs = split_batch(case, graphs)
    return sum(
        np.array_equal(ours.edge_index, theirs.edge_index)
        and np.array_equal(ours.cell_offsets, theirs.cell_offsets)
        and np.allclose(ours.distances, theirs.distances, rtol=1e-15, atol=0.0)
        for ours, theirs in zip(graphs, oracle, strict=True)
    )


def count_complete(case: Case, found: Any, oracle: list[RadiusGraph]) -> int:
    """Structures on which a library's search by itself gives exactly the pairs within the cutoff."""
    return sum(
        np.array_equal(pair_rows(*each[:3]), pair_rows(*graph.edge_index[::-1], graph.cell_offsets))
        for each, graph in zip(found, oracle, strict=True)
    )


def pair_rows(target: Any, source: Any, offsets: Any) -> np.ndarray:
    """(npairs, 5) sorted rows, without each atom as its own neighbour."""
    offsets = np.zeros((len(target), 3)) if offsets is None else np.asarray(offsets)
    rows = np.column_stack([np.asarray(target), np.asarray(source), offsets]).astype(np.int64)
    rows = rows[(rows[:, 0] != rows[:, 1]) | rows[:, 2:].any(axis=1)]
    return rows[np.lexsort(rows.T)]


def split_batch(case: Case, graph: Any) -> list[RadiusGraph]:
    if isinstance(graph, tuple):
        edges, lengths = graph
        graph = RadiusGraph(edges.edge_index.numpy(), edges.cell_offsets.numpy(), lengths.numpy())
    ptr = np.concatenate([[0], np.cumsum(case.batch[3])])
    cuts = np.searchsorted(graph.edge_index[1], ptr)
    return [
        RadiusGraph(graph.edge_index[:, a:b] - first, graph.cell_offsets[a:b], graph.distances[a:b])
        for a, b, first in zip(cuts[:-1], cuts[1:], ptr[:-1], strict=True)
    ]


def measure_case(case: Case, rounds: int) -> list[dict[str, Any]]:
    rows = []
    n = len(case.structures)
    whole, alone = dict(whole_graphs(case)), dict(searches_alone(case))
    tasks = {("whole graph", k): v for k, v in whole.items()} | {("search alone", k): v for k, v in alone.items()}
    oracle: Any = whole["numpy"]()
    complete = [
        radius_graph(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=case.cutoff, backend="numpy")
        for atoms in case.structures
    ]
    for (what, backend), seconds in best_times(tasks, rounds).items():
        if what == "whole graph":
            agree = count_agreements(case, whole[backend](), oracle)
        else:
            agree = count_complete(case, alone[backend](), complete)
        row = {"case": case.name, "what": what, "backend": backend, "per_s": n / seconds, "agree": f"{agree}/{n}"}
        rows.append(row)
    return rows


def measure_four_graphs(rounds: int) -> list[dict[str, Any]]:
    """All four graphs of a batch against its widest search, and against unpacking stored ones."""
    rows = []
    cases = [
        Case("32 slabs of 70 atoms, 12 Å", [make_slab(seed % 8) for seed in range(32)], 12.0, 1000),
        Case("64 molecules of 10 atoms, 8 Å", [make_molecule(seed) for seed in range(64)], 8.0, 1000),
        Case("512 molecules of 10 atoms, 8 Å", [make_molecule(seed) for seed in range(512)], 8.0, 1000),
    ]
    for case in cases:
        n, settings = len(case.structures), GraphSettings(cutoff=case.cutoff)
        tags = np.concatenate([atoms.get_tags() for atoms in case.structures])
        batch, rng = case.batch, np.random.default_rng(0)
        graphs = batch_four_graphs(*batch, tags, settings)
        packed = pack_four_graphs(graphs, batch[3])
        tasks = {
            "widest": lambda b=batch, c=case: batch_radius_graph(*b, cutoff=c.cutoff, max_neighbors=1000),
            "four": lambda b=batch, t=tags, s=settings: batch_four_graphs(*b, t, s),
            "dropout": lambda b=batch, t=tags, s=settings, r=rng: batch_four_graphs(*b, t, s, edge_dropout=0.1, rng=r),
            "unpack": lambda p=packed, b=batch: unpack_four_graphs(p, b[3]),
        }
        best = best_times(tasks, rounds)
        rows.append(
            {
                "case": case.name,
                "edges": {name: len(getattr(graphs, name)) / n for name in ("a2a", "main", "a2ee2a", "qint")},
                **{f"{name}_per_s": n / seconds for name, seconds in best.items()},
                "four_over_widest": best["four"] / best["widest"],
                "stored_bytes": packed.nbytes / n,
            }
        )
    return rows


def print_tables(rows: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    for what in ("whole graph", "search alone"):
        chosen = [row for row in rows if row["what"] == what]
        cases = list(dict.fromkeys(row["case"] for row in chosen))
        print(f"\n{what}, structures/s | " + " | ".join(cases) + "\n" + "|".join(["---"] * (len(cases) + 1)))
        for backend in dict.fromkeys(row["backend"] for row in chosen):
            found = {row["case"]: row for row in chosen if row["backend"] == backend}
            cells = [f"{found[c]['per_s']:,.0f} {found[c]['agree']}".strip() if c in found else "–" for c in cases]
            print(f"{backend} | " + " | ".join(cells))
    print(
        "\nfour graphs | widest search /s | four graphs /s | ratio | with dropout /s | unpack stored /s | stored bytes"
    )
    print("|".join(["---"] * 7))
    for row in four:
        print(
            f"{row['case']} | {row['widest_per_s']:,.0f} | {row['four_per_s']:,.0f} | {row['four_over_widest']:.2f} | "
            f"{row['dropout_per_s']:,.0f} | {row['unpack_per_s']:,.0f} | {row['stored_bytes']:,.0f}"
        )


def describe_machine() -> dict[str, Any]:
    installed = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    cpu = models[0] if models else platform.processor() or platform.machine()
    return {"date": f"{date.today()}", "cpu": cpu, "python": platform.python_version(), **installed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; the best counts")
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for case in make_cases() for row in measure_case(case, options.rounds)]
    four = measure_four_graphs(options.rounds)
    if options.json:
        print(json.dumps({"environment": describe_machine(), "graphs": rows, "four_graphs": four}, indent=1))
    else:
        print(", ".join(f"{key} {value}" for key, value in describe_machine().items()))
        print_tables(rows, four)


if __name__ == "__main__":
    main()
