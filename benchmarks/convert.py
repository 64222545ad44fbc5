"""Structures per second from published files to finished data sets, one core, on synthetic archives.

    python benchmarks/convert.py [--sources oc20 oc22] [--frames 10000] [--turns 5] [--json]

What is timed is what `jmp-data build SOURCE --workers 1` does by default, from planning to the manifest: decode, check
(the physical checks of `jmp_data.trust` included), compress, checksum and flush, digest the raw files, judge the split.
Beside it: the reader alone, which is part of the build.

The archives have the published layouts and the sizes that matter: pairs of files of 5,000 slabs of about 73 atoms (a
packed frame of the published set has about 1,720 bytes), LMDB records of 80 atoms, groups of 1,600 conformations,
reactions of 954 frames; no structure occurs twice, and few are flagged. Each turn times `ase.io.read` on OC20's
frames, *uncompressed*, then reader, then build. Times are processor time; rates are of the fastest turn, ratios are
medians over turns of what was measured in the same one, for machines differ and this one may change its speed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ase.io
import h5py
import numpy as np

from jmp_data import demo
from jmp_data.build import BuildSettings, SplitDone, choose_engine, plan_build, run_build
from jmp_data.build.part import convert_part
from jmp_data.build.plan import SplitBuild
from jmp_data.build.settings import PartJob
from jmp_data.demo.write_oc20 import FRAMES_PER_FILE
from jmp_data.manifests import load_manifest
from jmp_data.schema import Block
from jmp_data.sources import get_source, oc20, oc22

ASE_FRAMES = 300
_DEFAULT = BuildSettings()
MOLECULES_PER_FRAME = 15  # so that all archives take about as long
ATOMS_OF_FULL_PART = 26  # a molecule of this size fills a part to both of its limits, of structures and of atoms
FRAMES_OF_FULL_PART = 13_000  # of molecules: enough for the largest split of ANI-1x
OC20_SET = "s2ef_train_2M"


def slab(rng: np.random.Generator, number: int, mean_atoms: int) -> demo.LabelledFrame:
    """A relaxed-looking slab: fixed layers on lattice sites with small forces, free layers displaced."""
    side, layers = int(rng.integers(3, 6)), 4
    count = max(side * side * layers, int(rng.normal(mean_atoms, 8)))
    a = rng.uniform(2.4, 3.2)
    sites = np.stack(np.meshgrid(*[np.arange(n) for n in (side, side, count // side**2 + 1)], indexing="ij"), -1)
    positions = sites.reshape(-1, 3)[np.argsort(sites.reshape(-1, 3)[:, 2], kind="stable")][:count] * a
    fixed = positions[:, 2] < 2 * a
    positions = np.where(fixed[:, None], positions, positions + rng.normal(0, 0.05, positions.shape))
    forces = rng.normal(0, np.where(fixed, 0.05, 0.3)[:, None], positions.shape)
    numbers = rng.choice(rng.integers(21, 80, 2), count)
    numbers[-4:] = [6, 8, 1, 1]
    tags = np.where(fixed, 0, 1)
    tags[-4:] = 2
    cell = np.diag([side * a, side * a, 30.0])
    energy = float(rng.normal(-300, 50))
    return demo.LabelledFrame(
        atomic_numbers=numbers,
        positions=positions.round(8),
        energy=energy,
        forces=forces.round(8),
        cell=cell,
        tags=tags,
        fixed=fixed,
        system=int(rng.integers(1 << 21)),
        frame=number,
        reference_energy=energy + 1.5,
    )


def molecules(rng: np.random.Generator, frames: int, natoms: int) -> tuple[np.ndarray, np.ndarray]:
    """(frames, natoms, 3) positions, Å, and forces that add up to zero, eV/Å: one molecule that vibrates."""
    sites = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:natoms] * 1.3
    positions = sites + rng.normal(0, 0.07, (frames, natoms, 3))
    forces = rng.normal(0, 1.5, (frames, natoms, 3))
    return positions, forces - forces.mean(axis=1, keepdims=True)


def write_oc20(raw: Path, rng: np.random.Generator, frames: int) -> None:
    """Pairs of files."""
    demo.write_oc20_split(raw, OC20_SET, [slab(rng, number, 73) for number in range(frames)])


def write_oc22(raw: Path, rng: np.random.Generator, frames: int) -> None:
    """One LMDB file of PyG 1 records."""
    demo.write_oc22_split(raw, "train", [slab(rng, number, 80) for number in range(frames)])


def write_ani1x(raw: Path, rng: np.random.Generator, frames: int, natoms: int = 15) -> None:
    """Formulas of so many atoms."""
    with h5py.File(raw / "ani1x-release.h5", "w") as file:
        for number in range(max(2, frames * MOLECULES_PER_FRAME // 1600)):
            positions, forces = molecules(rng, 1600, natoms)
            group = file.create_group(f"C{number}H4")
            group["atomic_numbers"] = np.full(natoms, 6, np.uint8)
            group["coordinates"] = positions.astype(np.float32)
            group["wb97x_dz.energy"] = rng.normal(-380, 0.1, 1600)
            group["wb97x_dz.forces"] = (forces / 27.2).astype(np.float32)


def write_transition1x(raw: Path, rng: np.random.Generator, frames: int, natoms: int = 14) -> None:
    """Reactions of so many atoms, endpoints repeated."""

    def reactions() -> Iterator[demo.Reaction]:
        for number in range(max(2, frames * MOLECULES_PER_FRAME // 954)):
            positions, forces = molecules(rng, 954, natoms)
            yield demo.Reaction(
                name=f"rxn{number:04d}",
                split="train",
                atomic_numbers=np.array([6] * 4 + [1] * (natoms - 4)),
                positions=positions,
                energies=rng.normal(-8000, 1, 954),
                forces=forces,
                transition_state=5,
            )

    demo.write_transition1x(raw / "Transition1x.h5", reactions())


WRITERS: dict[str, Callable[[Path, np.random.Generator, int], None]] = {
    "oc20": write_oc20,
    "oc22": write_oc22,
    "ani1x": write_ani1x,
    "transition1x": write_transition1x,
}


class Turn(NamedTuple):
    """Seconds a record of one turn: processor time, and of the build the wall's as well."""

    ase: float
    read: float
    build: float
    build_wall: float


def seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Processor and wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def planned(name: str, raw: Path, out: Path, settings: BuildSettings = _DEFAULT) -> list[SplitBuild]:
    """All splits; ANI-1x has three."""
    return plan_build([name], raw, out, settings=settings)


def build(name: str, raw: Path, out: Path) -> list[SplitDone]:
    """As the command does with one worker."""
    return list(run_build(planned(name, raw, out), choose_engine(workers=1, scheduler=None), lambda part: None))


def take_turns(name: str, raw: Path, out: Path, plain: Path, turns: int) -> tuple[list[Turn], list[SplitDone]]:
    """Time ASE, the reader and the build in turns; also what was built."""
    source = get_source(name)
    parts = [job.part for split in planned(name, raw, out) for job in split.jobs]

    def read() -> int:
        return sum(len(item) for part in parts for item in source.read(raw, part) if isinstance(item, Block))

    read()  # the first of everything pays for imports and compiling
    done = build(name, raw, out)
    records = sum(split.manifest.records_in for split in done)
    taken = []
    for _ in range(turns):
        ase_cpu, _ = seconds(lambda: ase.io.read(plain, index=":", format="extxyz"))
        read_cpu, _ = seconds(read)
        shutil.rmtree(out)
        build_cpu, build_wall = seconds(lambda: build(name, raw, out))
        taken.append(Turn(ase_cpu / ASE_FRAMES, read_cpu / records, build_cpu / records, build_wall / records))
    return taken, done


def size_on_disk(folder: Path) -> int:
    """Bytes of a finished data set, without its build records."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and ".build" not in path.parts)


def measure(name: str, raw: Path, out: Path, plain: Path, turns: int) -> dict[str, Any]:
    """Rates, sizes and memory of one source."""
    taken, done = take_turns(name, raw, out, plain, turns)
    structures = sum(split.manifest.num_structures for split in done)
    bytes_each = sum(size_on_disk(split.dataset) for split in done) / structures
    shutil.rmtree(out)
    manifest = load_manifest(name)
    full = manifest.splits[0].count or (manifest.records.count if manifest.records else 0)
    best_build = min(turn.build for turn in taken)
    fill_largest_part(name, raw)
    largest = largest_job(name, raw, out).part
    return {
        "source": name,
        "records": sum(split.manifest.records_in for split in done),
        "structures": structures,
        "flags": sum(sum(split.manifest.flagged.values()) for split in done),
        "ase_io_read_per_s": 1 / min(turn.ase for turn in taken),
        "read_per_s": 1 / min(turn.read for turn in taken),
        "build_per_s": 1 / best_build,
        "build_per_s_wall": 1 / min(turn.build_wall for turn in taken),
        "read_over_ase": statistics.median(turn.ase / turn.read for turn in taken),
        "build_over_ase": statistics.median(turn.ase / turn.build for turn in taken),
        "bytes_per_structure": bytes_each,
        "full_set": full,
        "full_set_core_hours": full * best_build / 3600,
        "full_set_GB": full * bytes_each / 1e9,
        "worker_records": largest.num_records,
        "worker_peak_MB": peak_memory(name, raw, out, BuildSettings()),
        "worker_peak_MB_shuffle": peak_memory(name, raw, out, BuildSettings(shuffle=0)),
        "worker_peak_MB_graphs": peak_memory(name, raw, out, BuildSettings(graphs="all"), limit=2000),
    }


def fill_largest_part(name: str, raw: Path) -> None:
    """Repeat the records until they fill the largest part that a plan makes; of molecules, make larger ones instead."""
    if name == "oc20":
        pairs = sorted((raw / OC20_SET / OC20_SET).glob("*.xz"))
        for number in range(len(pairs) // 2, oc20.MAX_STRUCTURES_PER_PART // FRAMES_PER_FILE):
            for path in pairs[:2]:
                shutil.copy(path, path.with_name(f"{number}{path.name[1:]}"))
    elif name == "oc22":
        (path,) = raw.rglob("*.lmdb")
        with oc22.open_lmdb(path) as records:
            payloads = [records.read(key) for key in range(len(records))]
        path.unlink()
        demo.write_lmdb(path, payloads * -(-oc22.MAX_STRUCTURES_PER_PART // len(payloads)))
    elif name == "ani1x":
        write_ani1x(raw, np.random.default_rng(1), FRAMES_OF_FULL_PART, ATOMS_OF_FULL_PART)
    elif name == "transition1x":
        write_transition1x(raw, np.random.default_rng(1), FRAMES_OF_FULL_PART, ATOMS_OF_FULL_PART)


def largest_job(name: str, raw: Path, out: Path, settings: BuildSettings = _DEFAULT) -> PartJob:
    """The part with the most records."""
    jobs = [job for split in planned(name, raw, out, settings) for job in split.jobs]
    return max(jobs, key=lambda job: job.part.num_records)


def peak_memory(name: str, raw: Path, out: Path, settings: BuildSettings, limit: int | None = None) -> float:
    """Peak resident megabytes of a fresh worker that converts the largest part, or the first records of it."""
    job = replace(largest_job(name, raw, out, settings), limit=limit)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(_peak_memory, (job,))
    shutil.rmtree(out)
    return peak


def _peak_memory(job: PartJob) -> float:
    convert_part(job)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with what the parent had
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000, help="slabs (15 times as many molecules)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sources", nargs="*", default=list(WRITERS), choices=list(WRITERS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        plain = Path(folder) / "plain.extxyz"
        plain.write_text("".join(demo.format_extxyz(slab(rng, number, 73)) for number in range(ASE_FRAMES)))
        for name in options.sources:
            raw = Path(folder) / name
            raw.mkdir()
            WRITERS[name](raw, rng, options.frames)
            results.append(measure(name, raw, Path(folder) / "out", plain, options.turns))
            shutil.rmtree(raw)
            if not options.json:
                print_figures(results[-1])
    if options.json:
        print(json.dumps(results, indent=1))


def print_figures(result: dict[str, Any]) -> None:
    """One line a figure, as soon as a source is measured."""
    for key, value in result.items():
        print(f"  {key:24s} {value:14,.2f}" if key != "source" else value, flush=True)


if __name__ == "__main__":
    main()
