"""Bytes per structure on OC20-like data, against peers, and what further tricks would bring and cost at reading.

    python benchmarks/size.py [--structures 896] [--frames 32] [--json]

The structures are slabs of 72 metal atoms with an adsorbate atom on them, labelled by ASE's effective medium theory and
rounded to the eight decimals of the published text files. Cells are strained and all sites displaced at random, so that
no coordinate repeats as it would in perfect crystals. Two sets: frames of as many different systems, as the published
S2EF files hold them, and, for the tricks that need it, whole relaxations frame after frame. All sizes are those of
files on disk; decoding times are processor time of the best of several runs. nvalchemi-toolkit is measured where it is
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lmdb
import loader
import numpy as np
import numpy.typing as npt
from ase.build import fcc100, fcc111
from ase.calculators.emt import EMT
from numcodecs import Blosc

from jmp_data.demo.relaxation import SURFACE, add_adsorbate, relax_and_record
from jmp_data.schema import Block, Schema
from jmp_data.shards.dataset import open_dataset
from jmp_data.shards.graph_layer import LayerSettings
from jmp_data.shards.write_dataset import write_dataset

Array = npt.NDArray[Any]
BLOCK = 448  # structures of 73 atoms in a block


def relaxations(systems: int, frames: int) -> Block:
    """Trajectory after trajectory, 73 atoms and at most `frames` frames each."""
    rng, rows = np.random.default_rng(0), []
    for number in range(systems):
        metal = str(rng.choice(["Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al"]))
        facet = (fcc111, fcc100)[rng.integers(2)]
        slab = facet(metal, (3, 4, 6), vacuum=8.0, periodic=True)
        other = str(rng.choice(["Cu", "Ag", "Au", "Ni", "Pd", "Pt"]))
        slab.symbols[rng.choice(len(slab), 18, replace=False)] = other
        slab.set_tags(np.where(slab.get_tags() <= 2, SURFACE, 0))
        slab.set_cell(slab.cell.array @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True)
        slab.positions += rng.normal(scale=0.02, size=slab.positions.shape)
        both = add_adsorbate(slab, str(rng.choice(["H", "C", "N", "O"])), rng, clearance=1.8)
        fixed = both.get_tags() == 0
        free = int((~fixed).sum())
        both.positions[~fixed] += rng.normal(scale=rng.uniform(0.01, 0.1), size=(free, 3))
        both.calc = EMT()
        rows += relax_and_record(both, fixed, max_frames=frames, stride=1, system=number, reference_energy=0.0)
    columns = {
        "atomic_numbers": np.concatenate([row.atomic_numbers for row in rows]).astype(np.uint8),
        "positions": np.concatenate([row.positions.round(8) for row in rows]).astype(np.float32),
        "cell": np.stack([row.cell for row in rows]).astype(np.float32),
        "pbc": np.ones((len(rows), 3), bool),
        "tags": np.concatenate([row.tags for row in rows]).astype(np.uint8),
        "fixed": np.concatenate([row.fixed for row in rows]),
        "energy": np.array([row.energy for row in rows]),
        "forces": np.concatenate([row.forces.round(8) for row in rows]).astype(np.float32),
    }
    ids = [f"s2ef_train_2M/{row.system}.extxyz.xz#{row.frame}:random{row.system}/frame{row.frame}" for row in rows]
    return Block.from_columns(Schema(), np.full(len(rows), loader.ATOMS, np.int32), ids, columns)


def compress(array: Array, shuffle: int = Blosc.BITSHUFFLE, level: int = 5) -> bytes:
    return bytes(Blosc("zstd", level, shuffle).encode(np.ascontiguousarray(array)))


def best_time(function: Callable[[], Any]) -> float:
    times = []
    for _ in range(7):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def plain(shuffle: int, level: int) -> tuple[Callable[[Array, Block, str], list[bytes]], Callable[[list[bytes]], Any]]:
    def encode(column: Array, block: Block, name: str) -> list[bytes]:
        return [compress(column, shuffle if column.dtype.itemsize > 1 else Blosc.NOSHUFFLE, level)]

    return encode, lambda chunks: Blosc("zstd").decode(chunks[0])


def as_frames(column: Array) -> Array:
    return column.reshape(-1, loader.ATOMS, *column.shape[1:])


def same_system(block: Block) -> Array:
    """(n,) whether a structure continues the trajectory of the one before it."""
    systems = np.array([text.rpartition(b"/")[0] for text in block.source_ids.tolist()])
    return np.concatenate([[False], systems[1:] == systems[:-1]])


def encode_delta(column: Array, block: Block, name: str) -> list[bytes]:
    """Float bits minus those of the frame before, of positions and forces."""
    if name not in ("positions", "forces"):
        return [compress(column)]
    bits = as_frames(column).view(np.int32)
    return [compress(np.diff(bits, axis=0, prepend=np.zeros_like(bits[:1]))), b""]


def decode_delta(chunks: list[bytes]) -> Any:
    if len(chunks) == 1:
        return Blosc("zstd").decode(chunks[0])
    bits = np.frombuffer(Blosc("zstd").decode(chunks[0]), np.int32)
    return np.cumsum(bits.reshape(-1, 3 * loader.ATOMS), axis=0, dtype=np.int32).view(np.float32)


def encode_fixed_once(column: Array, block: Block, name: str) -> list[bytes]:
    """Positions of held atoms only where a trajectory begins."""
    if name != "positions":
        return [compress(column)]
    again = same_system(block)[:, None] & as_frames(block.columns["fixed"])
    return [compress(as_frames(column)[~again]), compress(again, Blosc.NOSHUFFLE)]


def decode_fixed_once(chunks: list[bytes]) -> Any:
    if len(chunks) == 1:
        return Blosc("zstd").decode(chunks[0])
    values = np.frombuffer(Blosc("zstd").decode(chunks[0]), np.float32).reshape(-1, 3)
    again = np.frombuffer(Blosc("zstd").decode(chunks[1]), bool).reshape(-1, loader.ATOMS)
    frames = np.zeros((*again.shape, 3), np.float32)
    frames[~again] = values
    for row in np.flatnonzero(again.any(axis=1)):
        frames[row][again[row]] = frames[row - 1][again[row]]
    return frames


def encode_decimals(column: Array, block: Block, name: str) -> list[bytes]:
    """Forces as integers of 10^-8 eV/Å, where that gives every float back."""
    whole = np.rint(column.astype(np.float64) * 1e8)
    if name != "forces" or np.abs(whole).max() >= 2**31 or ((whole / 1e8).astype(np.float32) != column).any():
        return [compress(column)]
    integers = whole.astype(np.int32)
    return [compress((integers << 1) ^ (integers >> 31)), b""]  # sign in the lowest bit, so that high bits are zero


def decode_decimals(chunks: list[bytes]) -> Any:
    if len(chunks) == 1:
        return Blosc("zstd").decode(chunks[0])
    folded = np.frombuffer(Blosc("zstd").decode(chunks[0]), np.uint32)
    return (((folded >> 1) ^ -(folded & 1)).view(np.int32) / 1e8).astype(np.float32)


Encoding = tuple[Callable[[Array, Block, str], list[bytes]], Callable[[list[bytes]], Any]]
ENCODINGS: dict[str, tuple[Encoding, bool]] = {
    "zstd 5": (plain(Blosc.NOSHUFFLE, 5), False),
    "byte shuffle, zstd 5": (plain(Blosc.SHUFFLE, 5), False),
    "bit shuffle, zstd 1": (plain(Blosc.BITSHUFFLE, 1), False),
    "bit shuffle, zstd 3": (plain(Blosc.BITSHUFFLE, 3), False),
    "bit shuffle, zstd 5 (stored)": (plain(Blosc.BITSHUFFLE, 5), False),
    "bit shuffle, zstd 9": (plain(Blosc.BITSHUFFLE, 9), False),
    "bit shuffle, zstd 5, whole trajectories": (plain(Blosc.BITSHUFFLE, 5), True),
    "delta to the structure before": ((encode_delta, decode_delta), False),
    "delta to the frame before, whole trajectories": ((encode_delta, decode_delta), True),
    "fixed atoms once, whole trajectories": ((encode_fixed_once, decode_fixed_once), True),
    "forces as integers of 1e-8": ((encode_decimals, decode_decimals), False),
}


def measure_encoding(encoding: Encoding, block: Block) -> dict[str, float]:
    encode, decode = encoding
    cuts = [block.take(slice(start, start + BLOCK)) for start in range(0, len(block), BLOCK)]
    names = [name for name in block.columns if name != "natoms"]
    start = time.process_time()
    chunks = [encode(cut.columns[name], cut, name) for cut in cuts for name in names]
    encoded = time.process_time() - start
    size = sum(len(chunk) for group in chunks for chunk in group)
    seconds = best_time(lambda: [decode(group) for group in chunks])
    count = len(block)
    return {"bytes": size / count, "encode_us": encoded / count * 1e6, "decode_us": seconds / count * 1e6}


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_lmdb(block: Block, folder: Path, dump: Callable[[dict[str, Any]], bytes]) -> int:
    """Pages in use; the file itself is as large as the map."""
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 32) as environment:
        with environment.begin(write=True) as transaction:
            for row in range(len(block)):
                transaction.put(f"{row}".encode(), dump(loader.one(block, row)))
        with environment.begin() as transaction:
            pages = transaction.stat()
        used_pages = pages["branch_pages"] + pages["leaf_pages"] + pages["overflow_pages"]
        return int(pages["psize"]) * int(used_pages)


def write_nvalchemi(block: Block, folder: Path) -> int:
    import torch
    from nvalchemi.data.atomic_data import AtomicData
    from nvalchemi.data.datapipes.backends.zarr import AtomicDataZarrWriter

    rows = [loader.one(block, row) for row in range(len(block))]
    data = [
        AtomicData(
            atomic_numbers=torch.from_numpy(row["atomic_numbers"].astype(np.int64)),
            positions=torch.from_numpy(row["positions"].copy()),
            forces=torch.from_numpy(row["forces"].copy()),
            energy=torch.from_numpy(row["energy"].copy())[:, None],
            cell=torch.from_numpy(row["cell"].copy()),
            pbc=torch.from_numpy(row["pbc"].copy()),
        )
        for row in rows
    ]
    AtomicDataZarrWriter(folder).write(data)
    return used(folder)


def write_ours(block: Block, folder: Path, **options: Any) -> int:
    dataset = write_dataset((block.structure(row) for row in range(len(block))), folder, schema=block.schema, **options)
    for left, right in zip(open_dataset(folder), (block.structure(row) for row in range(len(block))), strict=True):
        assert (left.positions == right.positions).all()
        assert (left.forces == right.forces).all()
    return sum(digest.bytes for shard in dataset.manifest.shards for digest in shard.files.values())


def run(structures: int, frames: int) -> dict[str, Any]:
    mixed, ordered = relaxations(structures, 1), relaxations(structures // frames, frames)
    root = Path(tempfile.mkdtemp(prefix="size-benchmark-"))
    payload = sum(column.nbytes for column in mixed.columns.values()) / len(mixed)
    stores: dict[str, Callable[[], int]] = {
        "pickled-PyG LMDB": lambda: write_lmdb(mixed, root / "pyg", loader.dump_pickle),
        "JSON-row LMDB (as ASE's)": lambda: write_lmdb(mixed, root / "ase", loader.dump_json),
        "nvalchemi-toolkit Zarr (no tags, fixed, ids)": lambda: write_nvalchemi(mixed, root / "nvalchemi"),
        "jmp-data, webdataset": lambda: write_ours(mixed, root / "tar", format="webdataset"),
        "jmp-data, zarr": lambda: write_ours(mixed, root / "zarr"),
        "jmp-data, zarr, whole trajectories": lambda: write_ours(ordered, root / "ordered"),
        "jmp-data, zarr, with main graphs": lambda: write_ours(mixed, root / "graphs", graphs=LayerSettings("main")),
    }
    sizes: dict[str, float] = {}
    try:
        for name, store in stores.items():
            try:
                sizes[name] = store() / len(ordered if "trajectories" in name else mixed)
            except ImportError as error:
                print(f"{name}: left out ({error})")
    finally:
        shutil.rmtree(root)
    encodings = {
        name: measure_encoding(encoding, ordered if in_order else mixed)
        for name, (encoding, in_order) in ENCODINGS.items()
    }
    return {
        "structures": len(mixed),
        "in_trajectories": len(ordered),
        "payload": payload,
        "stores": sizes,
        "encodings": encodings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=896, help="two blocks")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = run(options.structures, options.frames)
    if options.json:
        print(json.dumps(results, indent=1))
        return
    payload = results["payload"]
    print(f"{results['structures']} structures of {loader.ATOMS} atoms; raw float32 payload {payload:.0f} bytes each\n")
    for name, size in results["stores"].items():
        print(f"{name:<48}{size:>8.0f} bytes{size / payload:>8.3f} of payload")
    print()
    for name, row in results["encodings"].items():
        print(
            f"{name:<48}{row['bytes']:>8.0f} bytes{row['bytes'] / payload:>8.3f} of payload"
            f"{row['encode_us']:>9.1f} µs to encode{row['decode_us']:>8.2f} µs to decode"
        )


if __name__ == "__main__":
    main()
