"""Cost of searching for duplicates: per structure, and for a million against a hundred thousand.

    python benchmarks/overlap.py [--left 100000] [--right 10000] [--json]

Molecules are the hard case on purpose: all share few formulas (QM9 has 134k molecules of some 700 formulas), so that no
structure is spared by its composition. Crystals are cells of 4 to 40 atoms of which one in five has a composition that
the other side knows. One structure in a hundred is a disguised copy, and `matches` says how many were found. Times are
processor time of one process, so that other work on the machine counts little; the peak of memory is that of the whole
process, the making of the data included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.spatial.transform import Rotation

from jmp_data.overlap import OverlapSettings, find_overlap, verified_rmsd
from jmp_data.overlap.composition import composition_keys
from jmp_data.overlap.fingerprint import GEOMETRY, Kind, fingerprints
from jmp_data.overlap.geometry import Geometry
from jmp_data.references import StatisticsAccumulator
from jmp_data.schema import Block, Schema, Structure
from jmp_data.shards import ShardDataset, open_dataset
from jmp_data.shards.assemble import assemble
from jmp_data.shards.layout import Layout
from jmp_data.shards.staging import PartRecord, finish_part, stage_shards

MILLION, HUNDRED_THOUSAND = 1_000_000, 100_000
FORMULAS = 700
PLANTED = 100  # one structure of the left in so many
SCHEMA = Schema(())
Array = np.ndarray[Any, Any]


def formulas(rng: np.random.Generator) -> list[Array]:
    """Elements of small organic molecules, up to nine heavy atoms and their hydrogens."""
    made = []
    for _ in range(FORMULAS):
        heavy = rng.choice([6, 6, 6, 7, 8], int(rng.integers(5, 10)))
        made.append(np.concatenate([heavy, np.ones(int(rng.integers(4, 13)), int)]).astype(np.uint8))
    return made


def scattered(rng: np.random.Generator, count: int, natoms: int) -> Array:
    """(count, natoms, 3) places on a jittered grid of 1.3 Å, none twice."""
    side = int(np.ceil((2 * natoms) ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3) * 1.3
    sites = rng.random((count, len(grid))).argsort(axis=1)[:, :natoms]
    return np.asarray(grid[sites] + rng.uniform(-0.2, 0.2, (count, natoms, 3)))


def disguise(rng: np.random.Generator, one: Structure) -> tuple[Array, Array, Array]:
    """Atomic numbers, positions and cell after noise of 0.05 Å, a rotation, a shift and a permutation."""
    order = rng.permutation(one.natoms)
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    moved = (one.positions + rng.normal(0, 0.03, one.positions.shape)) @ turn.T + rng.normal(0, 3, 3)
    cell = np.zeros((3, 3)) if one.cell is None else one.cell @ turn.T
    return one.atomic_numbers[order], moved[order], cell


def molecule_blocks(seed: int, kinds: list[Array], count: int, originals: ShardDataset | None) -> Iterator[Block]:
    rng = np.random.default_rng(seed)
    structures = 2000
    for begin in range(0, count, structures):
        size = min(structures, count - begin)
        numbers, positions = [], []
        for kind in rng.integers(len(kinds), size=max(1, size // 20)):
            z = kinds[kind]
            for place in scattered(rng, 20, len(z)):
                numbers.append(z)
                positions.append(place)
        if originals is not None:
            for row in range(0, len(numbers), PLANTED):
                numbers[row], positions[row], _ = disguise(rng, originals[int(rng.integers(len(originals)))])
        yield packed(numbers, positions, None)


def crystal_blocks(seed: int, count: int, shared: float, originals: ShardDataset | None) -> Iterator[Block]:
    """Cells of 4 to 40 atoms; a share of them of 3,000 compositions that both sides have."""
    rng = np.random.default_rng(seed)
    known = [np.random.default_rng(kind).choice(range(3, 84), int(kind % 37 + 4)) for kind in range(3000)]
    for begin in range(0, count, 500):
        numbers, positions, cells = [], [], []
        for row in range(min(500, count - begin)):
            if originals is not None and row % PLANTED == 0:
                z, place, cell = disguise(rng, originals[int(rng.integers(len(originals)))])
            else:
                z = (
                    known[rng.integers(3000)]
                    if rng.random() < shared
                    else rng.choice(range(3, 84), rng.integers(4, 41))
                )
                place = scattered(rng, 1, len(z))[0] * 1.6
                cell = np.diag(place.max(axis=0) + 2.0)
            order = rng.permutation(len(z))
            numbers.append(z[order].astype(np.uint8))
            positions.append(place[order])
            cells.append(cell)
        yield packed(numbers, positions, np.array(cells))


def packed(numbers: list[Array], positions: list[Array], cells: Array | None) -> Block:
    columns = {"atomic_numbers": np.concatenate(numbers), "positions": np.concatenate(positions)}
    if cells is not None:
        columns |= {"cell": cells, "pbc": np.ones((len(cells), 3), bool)}
    ids = [f"{i}" for i in range(len(numbers))]
    return Block.from_columns(SCHEMA, np.array([len(z) for z in numbers]), ids, columns)


def write(folder: Path, blocks: Iterator[Block]) -> ShardDataset:
    total = StatisticsAccumulator()
    shards = stage_shards(folder, "all", blocks, schema=SCHEMA, layout=Layout(), format="zarr")
    record = PartRecord("all", shards, statistics=total.to_json())
    finish_part(folder, record)
    facts = {"records_in": sum(shard.structures for shard in shards)}
    label = folder.parent.name
    assemble(folder, [record], name=label, split="train", schema=SCHEMA, layout=Layout(), format="zarr", facts=facts)
    return open_dataset(folder)


def seconds(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def stage_costs(dataset: ShardDataset, kind: Kind) -> dict[str, float]:
    """Microseconds a structure: reading, composition and fingerprint, on the first blocks."""
    blocks = min(dataset.num_blocks, 8)
    sample = [dataset.read_block(number, GEOMETRY) for number in range(blocks)]
    structures = sum(map(len, sample))
    work = {
        "read": lambda: [dataset.read_block(number, GEOMETRY) for number in range(blocks)],
        "composition": lambda: [composition_keys(block) for block in sample],
        "fingerprint": lambda: [fingerprints(block, kind) for block in sample],
    }
    fingerprints(sample[0], kind)
    return {name: min(seconds(task) for _ in range(3)) / structures * 1e6 for name, task in work.items()}


def verification_cost(dataset: ShardDataset, count: int = 300) -> float:
    """Microseconds a pair, for pairs of a structure and a disguised copy."""
    rng = np.random.default_rng(1)
    settings = OverlapSettings()
    pairs = []
    for row in rng.integers(len(dataset), size=count):
        one = dataset[int(row)]
        numbers, positions, cell = disguise(rng, one)
        pbc = np.asarray(one.pbc)
        own = np.zeros((3, 3)) if one.cell is None else one.cell.astype(np.float64)
        original = Geometry(one.atomic_numbers, one.positions.astype(np.float64), own, pbc)
        pairs.append((original, Geometry(numbers, positions, cell.astype(np.float64), pbc)))
    verified_rmsd(*pairs[0], settings)
    return min(seconds(lambda: [verified_rmsd(*pair, settings) for pair in pairs]) for _ in range(3)) / count * 1e6


def search(left: ShardDataset, right: ShardDataset) -> dict[str, float]:
    """A whole search: indexing the right side, streaming the left side, verifying."""
    begin = time.process_time()
    (pair,) = find_overlap([left], [right], OverlapSettings()).pairs
    total = time.process_time() - begin
    return {
        "search_seconds": total,
        "search_us_per_left": total / len(left) * 1e6,
        "verified_per_left": pair.verified / len(left),
        "matches": float(len(pair.matches)),
    }


def measure(kind: Kind, left: ShardDataset, right: ShardDataset) -> dict[str, Any]:
    result: dict[str, Any] = {"kind": kind, "left": len(left), "right": len(right)}
    result["natoms"] = left.manifest.num_atoms / len(left)
    result |= {f"{name}_us": cost for name, cost in stage_costs(left, kind).items()}
    result["verify_us_per_pair"] = verification_cost(right)
    return result | search(left, right)


def extrapolate(small: dict[str, Any], large: dict[str, Any]) -> float:
    """Minutes for a million against a hundred thousand.

    Fingerprints of the right side cost the same each. A structure of the left has a cost of its own and one that grows
    with the right side, as more structures share a composition; both follow from two sizes of the right side.
    """
    each = [
        (run["search_seconds"] * 1e6 - run["fingerprint_us"] * run["right"]) / run["left"] for run in (small, large)
    ]
    slope = max(0.0, (each[1] - each[0]) / (large["right"] - small["right"]))
    streaming = (each[1] + slope * (HUNDRED_THOUSAND - large["right"])) * MILLION
    return float((streaming + large["fingerprint_us"] * HUNDRED_THOUSAND) / 60e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", type=int, default=50_000, help="structures that stream")
    parser.add_argument("--right", type=int, default=20_000, help="structures that are indexed")
    parser.add_argument("--kind", choices=["molecule", "crystal", "both"], default="both")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    kinds = formulas(rng)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = write(folder / "warm" / "train", molecule_blocks(9, kinds, 200, None))
        find_overlap([write(folder / "up" / "train", molecule_blocks(8, kinds, 200, warm))], [warm])
        warm = write(folder / "cold" / "train", crystal_blocks(9, 50, 1.0, None))
        find_overlap([write(folder / "frost" / "train", crystal_blocks(8, 200, 0.2, warm))], [warm])
        for kind, share in (("molecule", 1), ("crystal", 5)):
            if arguments.kind not in (kind, "both"):
                continue
            sizes = (arguments.right // 4 // share, arguments.right // share)
            runs = []
            for number, size in enumerate(sizes):
                if kind == "molecule":
                    right = write(folder / f"m{number}" / "train", molecule_blocks(1, kinds, size, None))
                    left = write(folder / f"M{number}" / "train", molecule_blocks(2, kinds, arguments.left, right))
                else:
                    right = write(folder / f"c{number}" / "train", crystal_blocks(3, size, 1.0, None))
                    left = write(
                        folder / f"C{number}" / "train", crystal_blocks(4, arguments.left // share, 0.2, right)
                    )
                runs.append(measure(kind, left, right))  # type: ignore[arg-type]
            runs[-1]["minutes_1m_x_100k"] = extrapolate(*runs)
            results += runs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if arguments.json:
        print(json.dumps({"runs": results, "peak_gib": peak}, indent=1))
        return
    for run in results:
        print(f"\n{run['kind']}s, {run['natoms']:.1f} atoms: {run['left']:,} x {run['right']:,}")
        for key, value in run.items():
            if key not in ("kind", "left", "right", "natoms"):
                print(f"  {key:<26}{value:12.2f}")
    print(f"\npeak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
