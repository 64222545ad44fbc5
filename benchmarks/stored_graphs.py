"""Stored graphs against computed ones: bytes, time to build, and what a loader delivers, in one process, from one run.

    python benchmarks/stored_graphs.py [--slabs 1024] [--molecules 8192] [--rounds 3] [--json]

Each data set is written without graphs, with `main` and with `all`; then one loader an epoch delivers ready batches, by
reading what is stored and by searching. Rounds alternate, and the best one counts, in processor time of all threads.
Every batch of the first round is compared: both ways must give the same edges.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.graphs import describe_machine, make_molecule, make_slab
from jmp_data import ShardDataset, StreamLoader, Structure, write_dataset
from jmp_data.graphs import GRAPH_NAMES
from jmp_data.shards.graph_layer import LayerSettings

OF_MAIN = ("main", "a2ee2a", "qint")


def structures(atoms: Sequence[Atoms], count: int) -> Iterator[Structure]:
    """Always other displacements of a few systems, with energies and forces."""
    rng = np.random.default_rng(0)
    for number in range(count):
        base = atoms[number % len(atoms)]
        shape = base.positions.shape
        yield Structure(
            atomic_numbers=base.numbers,
            positions=base.positions + rng.normal(0, 0.1, shape),
            cell=base.cell.array if base.pbc.any() else None,
            pbc=base.pbc,
            tags=base.get_tags(),
            energy=float(rng.normal()),
            forces=rng.normal(size=shape),
            source_id=f"{number}",
        )


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def loader(dataset: ShardDataset, names: Sequence[str], batch_size: int) -> StreamLoader:
    return StreamLoader(dataset, batch_size, graphs="auto", graph_names=names)


def epoch_seconds(stream: StreamLoader) -> float:
    stream.set_epoch(0)
    begin = time.process_time()
    for _ in stream:
        pass
    return time.process_time() - begin


def same_edges(stream: StreamLoader, other: StreamLoader, names: Sequence[str]) -> bool:
    keys = [f"{name}_{part}" for name in names for part in ("edge_index", "cell_offsets")]
    return all(
        torch.equal(batch[key], theirs[key]) for batch, theirs in zip(stream, other, strict=True) for key in keys
    )


def measure(label: str, atoms: Sequence[Atoms], count: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    datasets, seconds = {}, {}
    for kind in ("none", "main", "all"):
        begin = time.process_time()
        layer = None if kind == "none" else LayerSettings(kind)
        datasets[kind] = write_dataset(structures(atoms, count), folder / kind / "train", name=label, graphs=layer)
        seconds[kind] = time.process_time() - begin
    plain = folder_bytes(folder / "none")
    cases = [("main", OF_MAIN), ("all", GRAPH_NAMES)]
    batch_size = 32 if len(atoms[0]) > 32 else 128
    rows = []
    for kind, names in cases:
        streams = {way: loader(datasets[k], names, batch_size) for way, k in (("stored", kind), ("computed", "none"))}
        best = dict.fromkeys(streams, float("inf"))
        agrees = same_edges(*streams.values(), names)
        for _ in range(rounds):
            for way, stream in streams.items():
                best[way] = min(best[way], epoch_seconds(stream))
        layer_bytes = folder_bytes(folder / kind / "train" / "graphs")
        rows.append(
            {
                "structures": label,
                "layer": kind,
                "graphs": len(names),
                "structure_bytes": plain / count,
                "layer_bytes": layer_bytes / count,
                "bytes_an_edge": layer_bytes / datasets[kind].manifest.graphs["edges"],
                "block_mb": layer_bytes / datasets[kind].num_blocks / 1e6,
                "extra_build_us": (seconds[kind] - seconds["none"]) / count * 1e6,
                "stored_per_s": count / best["stored"],
                "computed_per_s": count / best["computed"],
                "same_edges": agrees,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slabs", type=int, default=1024)
    parser.add_argument("--molecules", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    systems = {
        "slabs, 70 atoms": ([make_slab(seed) for seed in range(8)], options.slabs),
        "molecules, 10 atoms": ([make_molecule(seed) for seed in range(8)], options.molecules),
    }
    rows = []
    for label, (atoms, count) in systems.items():
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(label, atoms, count, Path(folder), options.rounds)
    if options.json:
        print(json.dumps({"environment": describe_machine(), "rows": rows}, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in describe_machine().items()))
    print(
        "\nstructures | layer, graphs | bytes without | bytes of the layer | an edge | MB a block | "
        "build, µs more | stored /s | computed /s | same edges"
    )
    print("|".join(["---"] * 10))
    for row in rows:
        print(
            f"{row['structures']} | `{row['layer']}`, {row['graphs']} | "
            f"{row['structure_bytes']:,.0f} | {row['layer_bytes']:,.0f} | {row['bytes_an_edge']:.2f} | "
            f"{row['block_mb']:.1f} | {row['extra_build_us']:,.0f} | {row['stored_per_s']:,.0f} | "
            f"{row['computed_per_s']:,.0f} | {'yes' if row['same_edges'] else 'NO'}"
        )


if __name__ == "__main__":
    main()
