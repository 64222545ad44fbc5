"""Structures per second from published files to blocks and to finished shards, one core, on synthetic archives.

    python benchmarks/convert.py [--frames 2500] [--repeats 3] [--json]

The archives have the published layouts and the sizes that matter: slabs of about 73 atoms (a packed frame of the
published set has about 1,720 bytes), LMDB records of 80 atoms, groups of 1,600 conformations, reactions of 954 frames.
Times are processor time of the best of several runs, so that other work on the machine counts little; wall time is
printed too. `ase.io.read` on uncompressed text is timed in the same run: compare with that, machines differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ase.io
import h5py
import numpy as np

from jmp_data import demo
from jmp_data.build.part import convert_part
from jmp_data.build.settings import BuildSettings, PartJob
from jmp_data.manifests import load_manifest
from jmp_data.schema import Block
from jmp_data.sources import get_source, oc20

ENERGY, FORCES = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"


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


def write_oc20(raw: Path, rng: np.random.Generator, frames: int) -> None:
    """One pair of files, copied until they fill the largest part that a plan makes."""
    slabs = [slab(rng, number, 73) for number in range(frames)]
    written = demo.write_oc20_split(raw, "s2ef_train_2M", slabs)
    for number in range(1, max(2, oc20.MAX_STRUCTURES_PER_PART // frames)):
        for path in written:
            shutil.copy(path, path.with_name(f"{number}{path.name[1:]}"))
    (raw / "plain.extxyz").write_text("".join(demo.format_extxyz(frame) for frame in slabs[:300]))


def write_oc22(raw: Path, rng: np.random.Generator, frames: int) -> None:
    """One LMDB file of PyG 1 records."""
    demo.write_oc22_split(raw, "train", [slab(rng, number, 80) for number in range(frames)])


def write_ani1x(raw: Path, rng: np.random.Generator, frames: int) -> None:
    """Formulas of 15 atoms."""
    with h5py.File(raw / "ani1x-release.h5", "w") as file:
        for carbons in range(1, max(2, 64 * frames // 1600)):
            group = file.create_group(f"C{carbons}H4")
            group["atomic_numbers"] = np.full(15, 6, np.uint8)
            group["coordinates"] = rng.random((1600, 15, 3), np.float32)
            group["wb97x_dz.energy"] = rng.normal(-380, 1, 1600)
            group["wb97x_dz.forces"] = rng.normal(0, 0.08, (1600, 15, 3)).astype(np.float32)


def write_transition1x(raw: Path, rng: np.random.Generator, frames: int) -> None:
    """Reactions of 14 atoms, endpoints repeated."""
    reactions = [
        demo.Reaction(
            name=f"rxn{number:04d}",
            split="train",
            atomic_numbers=np.array([6] * 4 + [1] * 10),
            positions=rng.random((954, 14, 3)),
            energies=rng.normal(-8000, 1, 954),
            forces=rng.normal(size=(954, 14, 3)),
            transition_state=5,
        )
        for number in range(max(2, 64 * frames // 954))
    ]
    demo.write_transition1x(raw / "Transition1x.h5", reactions)


WRITERS: dict[str, Callable[[Path, np.random.Generator, int], None]] = {
    "oc20": write_oc20,
    "oc22": write_oc22,
    "ani1x": write_ani1x,
    "transition1x": write_transition1x,
}


def best(function: Callable[[], Any], repeats: int, prepare: Callable[[], Any] = lambda: None) -> tuple[float, float]:
    """Processor and wall seconds of the fastest run; `prepare` is not timed."""
    runs = []
    for _ in range(repeats):
        prepare()
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        runs.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(cpu for cpu, _ in runs), min(wall for _, wall in runs)


def peak_memory(name: str, raw: Path, out: Path, settings: BuildSettings, limit: int | None = None) -> float:
    """Peak resident megabytes of a fresh worker that converts the largest part."""
    part = max(get_source(name).plan(raw, "train").parts, key=lambda part: part.num_records)
    job = PartJob(name, raw, out, part, settings, limit)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(_peak_memory, (job,))
    shutil.rmtree(out)
    return peak


def _peak_memory(job: PartJob) -> float:
    convert_part(job)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with what the parent had
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(name: str, raw: Path, out: Path, repeats: int) -> dict[str, Any]:
    """Rates of one source, reader alone and to finished shards."""
    source = get_source(name)
    parts = source.plan(raw, "train").parts
    records = sum(part.num_records for part in parts)
    blocks = [item for part in parts for item in source.read(raw, part) if isinstance(item, Block)]
    structures = sum(map(len, blocks))
    payload = sum(column.nbytes for block in blocks for column in block.columns.values()) / structures
    del blocks

    def read() -> None:
        for part in parts:
            for _ in source.read(raw, part):
                pass

    def build() -> None:
        for part in parts:
            convert_part(PartJob(name, raw, out, part, BuildSettings()))

    read_cpu, read_wall = best(read, repeats)
    build_cpu, build_wall = best(build, repeats, lambda: shutil.rmtree(out, ignore_errors=True))
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    manifest = load_manifest(name)
    full = manifest.splits[0].count or (manifest.records.count if manifest.records else 0)
    return {
        "source": name,
        "structures": structures,
        "read_per_s": records / read_cpu,
        "read_per_s_wall": records / read_wall,
        "build_per_s": records / build_cpu,
        "build_per_s_wall": records / build_wall,
        "bytes_per_structure": written / structures,
        "raw_columns_bytes": payload,
        "full_set": full,
        "full_set_core_hours": full * build_cpu / records / 3600,
        "full_set_GB": full * written / structures / 1e9,
        "worker_peak_MB": peak_memory(name, raw, out, BuildSettings()),
        "worker_peak_MB_shuffle": peak_memory(name, raw, out, BuildSettings(shuffle=0)),
        "worker_peak_MB_graphs": peak_memory(name, raw, out, BuildSettings(graphs="all"), limit=2000),
    }


def ase_rate(raw: Path) -> float:
    """Frames per second of `ase.io.read` on uncompressed text."""
    cpu, _ = best(lambda: ase.io.read(raw / "plain.extxyz", index=":", format="extxyz"), 2)
    return 300 / cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2500, help="slabs in a file (64 times as many molecules)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sources", nargs="*", default=list(WRITERS), choices=list(WRITERS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sources:
            raw = Path(folder) / name
            raw.mkdir()
            WRITERS[name](raw, np.random.default_rng(0), options.frames)
            results.append(measure(name, raw, Path(folder) / "out", options.repeats))
            if name == "oc20":
                results[-1]["ase_io_read_per_s"] = ase_rate(raw)
                results[-1]["build_over_ase"] = results[-1]["build_per_s"] / results[-1]["ase_io_read_per_s"]
                packed = (raw / "s2ef_train_2M" / "s2ef_train_2M" / "0.extxyz.xz").stat().st_size
                results[-1]["packed_bytes_per_frame"] = packed / options.frames
            shutil.rmtree(raw)
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        print(result.pop("source"))
        for key, value in result.items():
            print(f"  {key:24s} {value:14,.1f}")


if __name__ == "__main__":
    main()
