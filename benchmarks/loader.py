"""Structures per second from storage to ready `torch_geometric` batches, shuffled, one process; peers in the same run.

    python benchmarks/loader.py [--structures 28800] [--rounds 5] [--json]
    python benchmarks/loader.py --graphs

Slabs of 73 atoms with energies, forces, tags and fixed atoms; batches of 32 without edges. Every way to store them gets
the same structures, everything lies in the page cache, each measurement has a fresh process to itself (some peers leave
threads behind), and the rounds go through all ways in turn, so that a busy moment of the machine hits all of them. The
best round counts. "cpu" is processor time of all threads, which other work on the machine disturbs least. Peers that
are not installed are left out; `pip install -c constraints.txt litdata ase-db-backends nvalchemi-toolkit` gets them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lmdb
import numpy as np
import torch
import webdataset
from torch_geometric.data import Batch, Data

from jmp_data.mixture import Mixture
from jmp_data.schema import Block, Schema
from jmp_data.schema.block import ragged_take
from jmp_data.shards.dataset import open_dataset
from jmp_data.shards.layout import Format
from jmp_data.shards.write_dataset import write_dataset
from jmp_data.stream import StreamLoader

ATOMS, BATCH = 73, 32
FIELDS = ("atomic_numbers", "positions", "cell", "pbc", "tags", "fixed", "energy", "forces")
ATOM_LEVEL = ("atomic_numbers", "positions", "tags", "fixed", "forces")
Batches = Callable[[], Iterator[Batch]]
Store = Callable[[Block, Path], None]
Open = Callable[[Path], Batches]


def make_slabs(count: int) -> Block:
    """Slabs that compress like relaxations do: few elements, layers, small displacements, zero-padded decimals."""
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(np.arange(4), np.arange(4), np.arange(5), indexing="ij"), -1).reshape(-1, 3)[:ATOMS]
    scale = rng.uniform(2.4, 3.2, (count, 1, 1))
    positions = lattice * scale + rng.normal(0, 0.05, (count, ATOMS, 3))
    fixed = np.tile(lattice[:, 2] < 2, count)
    forces = rng.normal(0, 0.3, (count * ATOMS, 3)) * np.where(fixed, 0.1, 1.0)[:, None]
    elements = rng.integers(21, 80, (count, 2))
    columns = {
        "atomic_numbers": np.take_along_axis(elements, rng.integers(0, 2, (count, ATOMS)), 1).astype(np.uint8).ravel(),
        "positions": positions.reshape(-1, 3).astype(np.float32),
        "cell": (np.diag([4.0, 4.0, 12.0]) * scale).astype(np.float32),
        "pbc": np.ones((count, 3), bool),
        "tags": np.where(fixed, 0, 1).astype(np.uint8),
        "fixed": fixed,
        "energy": rng.normal(-300, 50, count),
        "forces": forces.astype(np.float32),
    }
    ids = [f"system_{i // 100}/frame_{i % 100}" for i in range(count)]
    return Block.from_columns(Schema(), np.full(count, ATOMS, np.int32), ids, columns)


def one(block: Block, row: int) -> dict[str, np.ndarray[Any, Any]]:
    atoms = slice(row * ATOMS, (row + 1) * ATOMS)
    return {name: block.columns[name][atoms if name in ATOM_LEVEL else slice(row, row + 1)] for name in FIELDS}


def to_data(sample: dict[str, Any]) -> Data:
    tensors = {name: torch.as_tensor(np.asarray(value)) for name, value in sample.items()}
    for name in ("atomic_numbers", "tags"):
        tensors[name] = tensors[name].long()
    tensors["pos"] = tensors.pop("positions")
    return Data(**tensors, natoms=torch.tensor([len(tensors["pos"])]))


def batched(samples: Iterator[Data]) -> Iterator[Batch]:
    held: list[Data] = []
    for sample in samples:
        held.append(sample)
        if len(held) == BATCH:
            yield Batch.from_data_list(held)
            held = []


def store_columns(block: Block, folder: Path) -> None:
    np.savez(folder / "columns.npz", natoms=block.natoms, **{name: block.columns[name] for name in FIELDS})


def open_columns(folder: Path) -> Batches:
    """The bound: all columns in memory, one index operation per column and batch."""
    loaded = dict(np.load(folder / "columns.npz"))
    sizes = loaded.pop("natoms").astype(np.int64)
    columns = {name: torch.from_numpy(column) for name, column in loaded.items()}
    for name in ("atomic_numbers", "tags"):
        columns[name] = columns[name].long()
    ptr = np.concatenate([[0], np.cumsum(sizes)])

    def batches() -> Iterator[Batch]:
        order = np.random.default_rng(1).permutation(len(sizes))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            atoms, chosen = torch.from_numpy(ragged_take(ptr, rows)), torch.from_numpy(rows)
            natoms = torch.from_numpy(sizes[rows])
            batch = Batch(batch=torch.repeat_interleave(natoms), ptr=torch.nn.functional.pad(natoms.cumsum(0), (1, 0)))
            for name, column in columns.items():
                batch["pos" if name == "positions" else name] = column[atoms if name in ATOM_LEVEL else chosen]
            batch.natoms = natoms
            yield batch

    return batches


def dump_pickle(sample: dict[str, Any]) -> bytes:
    """One pickled PyG object per record, as OCP and the original stored them."""
    return pickle.dumps(to_data(sample))


def store_lmdb(dump: Callable[[dict[str, Any]], bytes]) -> Store:
    def store(block: Block, folder: Path) -> None:
        with lmdb.open(str(folder), map_size=1 << 34) as environment, environment.begin(write=True) as transaction:
            for row in range(len(block)):
                transaction.put(f"{row}".encode(), dump(one(block, row)))

    return store


def open_lmdb(load: Callable[[bytes], Data]) -> Open:
    def opened(folder: Path) -> Batches:
        environment = lmdb.open(str(folder), readonly=True, lock=False)

        def batches() -> Iterator[Batch]:
            with environment.begin(buffers=True) as transaction:
                order = np.random.default_rng(1).permutation(transaction.stat()["entries"])
                yield from batched(load(bytes(transaction.get(f"{row}".encode()))) for row in order)

        return batches

    return opened


def store_ase_lmdb(block: Block, folder: Path) -> None:
    """Rows of `ase.db` in LMDB, through the back end that fairchem's data sets come in (`ase-db-backends`)."""
    import ase.db
    import ase_db_backends  # noqa: F401  registers the back end
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.constraints import FixAtoms

    with ase.db.connect(folder / "slabs.aselmdb", type="aselmdb") as database:
        for row in range(len(block)):
            structure = block.structure(row)
            atoms = structure.to_ase()
            atoms.set_constraint(FixAtoms(mask=structure.fixed))
            atoms.calc = SinglePointCalculator(atoms, energy=structure.energy, forces=structure.forces)
            database.write(atoms)


def open_ase_lmdb(folder: Path) -> Batches:
    import ase.db
    import ase_db_backends  # noqa: F401

    database = ase.db.connect(folder / "slabs.aselmdb", type="aselmdb")

    def load(row: int) -> Data:
        atoms = database._get_row(row + 1).toatoms()
        fixed = np.zeros(len(atoms), bool)
        fixed[atoms.constraints[0].index] = True
        return to_data(
            {
                "atomic_numbers": atoms.numbers.astype(np.uint8),
                "positions": atoms.positions.astype(np.float32),
                "cell": atoms.cell.array.astype(np.float32)[None],
                "pbc": atoms.pbc[None],
                "tags": atoms.get_tags().astype(np.uint8),
                "fixed": fixed,
                "energy": np.array([atoms.get_potential_energy()]),
                "forces": atoms.get_forces(apply_constraint=False).astype(np.float32),
            }
        )

    return lambda: batched(load(row) for row in np.random.default_rng(1).permutation(len(database)).tolist())


def store_nvalchemi(block: Block, folder: Path) -> None:
    """nvalchemi-toolkit's Zarr store with its defaults; it has no place for tags and fixed atoms."""
    from nvalchemi.data import AtomicData
    from nvalchemi.data.datapipes import AtomicDataZarrWriter

    frames = []
    for row in range(len(block)):
        sample = {name: torch.from_numpy(np.array(value)) for name, value in one(block, row).items()}
        frames.append(
            AtomicData(
                atomic_numbers=sample["atomic_numbers"].long(),
                positions=sample["positions"],
                cell=sample["cell"],
                pbc=sample["pbc"],
                energy=sample["energy"].reshape(1, 1),
                forces=sample["forces"],
            )
        )
    AtomicDataZarrWriter(folder / "slabs.zarr").write(frames)


def open_nvalchemi(folder: Path) -> Batches:
    """Its own batches, without a turn into those of torch_geometric; 16 batches a read, no validation."""
    from nvalchemi.data.datapipes import AtomicDataZarrReader, DataLoader, Dataset

    dataset = Dataset(AtomicDataZarrReader(folder / "slabs.zarr"), device="cpu", skip_validation=True)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, prefetch_factor=16)
    return lambda: iter(loader)


def store_tars(block: Block, folder: Path) -> None:
    for shard in range(4):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for row in range(shard, len(block), 4):
                buffer = io.BytesIO()
                np.savez(buffer, **one(block, row))
                info = tarfile.TarInfo(f"{row:08d}.npz")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)


def open_tars(folder: Path) -> Batches:
    """One npz per structure in tars, shuffled through webdataset's own buffer."""
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = webdataset.WebDataset(shards, shardshuffle=4, empty_check=False).shuffle(1000).decode()
    pipeline = pipeline.to_tuple("npz").map(lambda sample: to_data(dict(sample[0])))
    return lambda: batched(iter(pipeline))


def store_litdata(block: Block, folder: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=1 << 26)
    for row in range(len(block)):
        writer[row] = {name: torch.from_numpy(np.array(value)) for name, value in one(block, row).items()}
    writer.done()
    writer.merge()


def open_litdata(folder: Path) -> Batches:
    """litdata's optimised chunks of one dictionary of tensors per structure."""
    import litdata

    dataset = litdata.StreamingDataset(str(folder), shuffle=True)
    return lambda: batched(to_data(sample) for sample in dataset)


def store_ours(format_name: Format) -> Store:
    def store(block: Block, folder: Path) -> None:
        structures = (block.structure(row) for row in range(len(block)))
        write_dataset(structures, folder / "train", format=format_name, schema=block.schema)

    return store


def open_ours(folder: Path) -> Batches:
    # Many passes in one epoch: the stream in its stride, reading the next window while this one is served.
    mixture = Mixture.from_datasets({"slabs": open_dataset(folder / "train")}, repeats={"slabs": 1000})
    return lambda: iter(StreamLoader(mixture, batch_size=BATCH))


WAYS: dict[str, tuple[Store, Open]] = {
    "columns in RAM (bound)": (store_columns, open_columns),
    "pickled-PyG LMDB": (store_lmdb(dump_pickle), open_lmdb(pickle.loads)),
    "ASE-LMDB (ase-db-backends)": (store_ase_lmdb, open_ase_lmdb),
    "webdataset, npz per structure": (store_tars, open_tars),
    "litdata": (store_litdata, open_litdata),
    "nvalchemi-toolkit, zarr": (store_nvalchemi, open_nvalchemi),
    "jmp-data, zarr": (store_ours("zarr"), open_ours),
    "jmp-data, webdataset": (store_ours("webdataset"), open_ours),
}
BASE, BOUND = "pickled-PyG LMDB", "columns in RAM (bound)"


def read(batches: Batches, seconds: float) -> tuple[float, float]:
    """Wall and processor seconds per structure, over as many passes as fill `seconds`."""
    seen, wall, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        for batch in batches():
            seen += int(batch.num_graphs)
            if time.perf_counter() - wall > seconds:
                return (time.perf_counter() - wall) / seen, (time.process_time() - cpu) / seen


def measure(name: str, folder: Path) -> list[float]:
    """What one fresh process needs, after it has warmed up."""
    batches = WAYS[name][1](folder)
    read(batches, 0.5)
    return list(read(batches, 1.5))


def graph_costs(folder: Path, batches: int = 100) -> list[dict[str, Any]]:
    """Structures per second with the four graphs of GemNet-OC: the search alone, and streams that do it."""
    from jmp_data.graphs import PERIODIC, attach_graphs

    def stream(**settings: Any) -> Iterator[Batch]:
        mixture = Mixture.from_datasets({"slabs": open_dataset(folder / "train")}, repeats={"slabs": 1000})
        return iter(StreamLoader(mixture, batch_size=BATCH, **settings))

    def rate(step: Callable[[], Any]) -> float:
        for _ in range(4):
            step()
        start = time.perf_counter()
        for _ in range(batches):
            step()
        return batches * BATCH / (time.perf_counter() - start)

    plain = stream()
    held = [next(plain).clone() for _ in range(batches + 4)]
    rows = [("graphs of batches in memory, one thread", rate(lambda: attach_graphs(held.pop(), [PERIODIC])))]
    for workers in (0, 1, 2):
        with_graphs = stream(graphs=PERIODIC, num_workers=workers)
        rows.append((f"stream with graphs, {workers} workers", rate(with_graphs.__next__)))
    return [{"way": name, "structures_per_s": round(value, 1)} for name, value in rows]


def last_line(command: list[str]) -> list[float]:
    """The JSON that a process prints last; some peers greet before."""
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return list(json.loads(output.splitlines()[-1]))


def store_all(structures: int, root: Path) -> dict[str, Path]:
    """Folder of each way whose packages are here; what an earlier run has stored there is taken as it is."""
    block, folders = make_slabs(structures), {}
    for number, (name, (store, _)) in enumerate(WAYS.items()):
        folder, done = root / str(number), root / f"{number}.done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                store(block, folder)
            except ImportError as error:
                print(f"{name}: left out ({error})", file=sys.stderr)
                continue
            done.touch()
        folders[name] = folder
    return folders


def run(structures: int, rounds: int, keep: Path | None) -> list[dict[str, Any]]:
    root = Path(tempfile.mkdtemp(prefix="loader-benchmark-")) if keep is None else keep
    try:
        folders = store_all(structures, root)
        times: dict[str, list[list[float]]] = {name: [] for name in folders}
        for _ in range(rounds):
            for name, folder in folders.items():
                command = [sys.executable, __file__, "--measure", name, str(folder)]
                times[name].append(last_line(command))
        best = {name: [min(each) for each in zip(*rows, strict=True)] for name, rows in times.items()}
        return [
            {
                "way": name,
                "structures_per_s": round(1 / best[name][0]),
                "cpu_us_per_structure": round(best[name][1] * 1e6, 2),
                "times_lmdb": round(best[BASE][0] / best[name][0], 2),
                "of_ram_bound": round(best[BOUND][0] / best[name][0], 3),
                "bytes_per_structure": round(sum(512 * f.stat().st_blocks for f in folder.rglob("*")) / structures),
            }
            for name, folder in folders.items()
        ]
    finally:
        if keep is None:
            shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=28_800)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the stored data here, and take what is there")
    parser.add_argument("--store", action="store_true", help="only store the data in --folder")
    parser.add_argument("--graphs", action="store_true", help="instead: what the graphs of GemNet-OC cost")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    if arguments.store:
        store_all(arguments.structures, arguments.folder)
        return
    if arguments.graphs:
        with tempfile.TemporaryDirectory() as folder:
            store_ours("zarr")(make_slabs(arguments.structures), Path(folder))
            print(json.dumps(graph_costs(Path(folder)), indent=1))
        return
    rows = run(arguments.structures, arguments.rounds, arguments.folder)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'way':<32}{'structures/s':>14}{'cpu µs':>9}{'x LMDB':>9}{'of RAM':>9}{'bytes':>8}")
    for row in rows:
        print(
            f"{row['way']:<32}{row['structures_per_s']:>14,}{row['cpu_us_per_structure']:>9}{row['times_lmdb']:>9}"
            f"{row['of_ram_bound']:>9}{row['bytes_per_structure']:>8}"
        )


if __name__ == "__main__":
    main()
