"""A simulated OC20 of 134 million frames: what planning, building, opening and mixing cost, and how they grow.

Two halves. `build` makes a raw archive with the real number of files (26,786 pairs by default) but a thousandth of the
frames in each (5), and times plan, convert and finalise; per-file costs are the real ones, per-frame costs are a
thousandth. `index` writes data set folders whose indexes have the real sizes (10^5 to 1.34·10^8 structures) but no
structure data, and times opening, sizes, mixing, and planning the first batches, each in a process of its own.

    python benchmarks/scale.py [--pairs 26786] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import lzma
import multiprocessing
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FRAMES_PER_PAIR = 5
OC20_FRAMES = 133_934_018
SIZES = (100_000, 1_000_000, 10_000_000, OC20_FRAMES)


def measure(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Run in a fresh process; seconds, peak memory above the import, and what it returned."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (function, arguments))


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    import jmp_data.mixture
    import jmp_data.shards
    import jmp_data.stream  # noqa: F401 - imports are not what is measured

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 3), "MB": round((peak - before) / 1024, 1), **(result or {})}


def write_raw(folder: Path, pairs: int) -> None:
    """`pairs` files of five frames each, as s2ef_train_all."""
    target = folder / "s2ef_train_all" / "s2ef_train_all"
    target.mkdir(parents=True)
    frame = (
        '3\nLattice="9.0 0 0 0 9.0 0 0 0 20.0" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
        'energy=-20.5 free_energy=-20.5 pbc="T T T"\n'
        "Pt 0.00000000 0.00000000 5.00000000 F 0 0.01000000 0.00000000 0.00000000\n"
        "Pt 2.70000000 0.00000000 5.00000000 T 1 -0.01000000 0.00000000 0.00000000\n"
        "O 1.30000000 0.00000000 6.80000000 T 2 0.00000000 0.00000000 0.00000000\n"
    )
    text = lzma.compress((frame * FRAMES_PER_PAIR).encode(), preset=0)
    for number in range(pairs):
        ids = "".join(f"random{number},frame{line},-20.0\n" for line in range(FRAMES_PER_PAIR))
        (target / f"{number}.extxyz.xz").write_bytes(text)
        (target / f"{number}.txt.xz").write_bytes(lzma.compress(ids.encode(), preset=0))


def plan(raw: Path, out: Path) -> dict[str, Any]:
    from jmp_data.build import BuildSettings, plan_build

    builds = plan_build(["oc20"], raw, out, settings=BuildSettings())
    return {"parts": sum(len(build.jobs) for build in builds)}


def build(raw: Path, out: Path) -> dict[str, Any]:
    from jmp_data.build import BuildSettings, choose_engine, plan_build, run_build

    builds = plan_build(["oc20"], raw, out, settings=BuildSettings())
    (done,) = run_build(builds, choose_engine(workers=2, scheduler=None), lambda entry: None)
    return {"structures": done.manifest.num_structures, "shards": len(done.manifest.shards)}


def write_index(folder: Path, structures: int) -> Path:
    """A finished data set folder of that size, with true indexes and a true manifest but no structure data."""
    from jmp_data.schema import Schema
    from jmp_data.shards.formats import digest, digest_file
    from jmp_data.shards.layout import Layout, stored_columns
    from jmp_data.shards.manifest import MANIFEST_NAME, DatasetManifest, FileDigest, ShardRecord
    from jmp_data.shards.staging import npy_bytes

    target = folder / f"n{structures}" / "train"
    target.mkdir(parents=True)
    rng = np.random.default_rng(0)
    natoms = np.lib.format.open_memmap(target / "natoms.npy", mode="w+", dtype=np.int32, shape=(structures,))
    for start in range(0, structures, 1 << 24):
        stop = min(start + (1 << 24), structures)
        natoms[start:stop] = np.clip(rng.normal(73, 25, stop - start), 8, 225)
    natoms.flush()
    per_block = 440
    counts = np.full(-(-structures // per_block), per_block, np.int64)
    counts[-1] = structures - per_block * (len(counts) - 1)
    blocks = np.zeros((len(counts), 4), np.int64)
    blocks[:, 0], blocks[:, 1] = counts, counts * 73
    payload = npy_bytes(blocks)
    (target / "blocks.npy").write_bytes(payload)
    names = [column.name for column in stored_columns(Schema(), Layout())]
    shards = []
    for number, first in enumerate(range(0, len(counts), 68)):  # 30,000 structures a part
        members = counts[first : first + 68]
        files = {f"{name}/c/{number}/0/0": FileDigest(10_000_000, "0" * 64) for name in names}
        shards.append(ShardRecord(len(members), int(members.sum()), int(members.sum()) * 73, files, f"{number:024x}"))
    manifest = DatasetManifest(
        name=f"n{structures}",
        split="train",
        format="zarr",
        schema=Schema(),
        layout=Layout(),
        shards=tuple(shards),
        files={"natoms.npy": digest_file(target / "natoms.npy"), "blocks.npy": digest(payload)},
        records_in=structures,
        content_sha256=f"{structures:064d}",
    )
    (target / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return target


def open_it(path: Path) -> dict[str, Any]:
    from jmp_data.shards import open_dataset

    dataset = open_dataset(path)
    return {"structures": len(dataset), "blocks": dataset.num_blocks, "natoms": len(dataset.natoms)}


def mix_and_plan(paths: list[Path]) -> dict[str, Any]:
    """Open a mixture and plan the first global batches of an epoch, as a loader does before it reads anything."""
    from jmp_data.mixture import Mixture
    from jmp_data.stream import StreamLoader

    start = time.perf_counter()
    mixture = Mixture.from_datasets({path.parent.name: path for path in paths}, temperature=2.0)
    mixed = time.perf_counter() - start
    start = time.perf_counter()
    loader = StreamLoader(mixture, batch_size=32, seed=0)
    steps = len(loader)
    return {
        "mix_seconds": round(mixed, 3),
        "epoch_seconds": round(time.perf_counter() - start, 3),
        "epoch": mixture.epoch_size,
        "steps": steps,
    }


def run(folder: Path, pairs: int) -> dict[str, Any]:
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    for count in (pairs // 100, pairs // 10, pairs):
        raw, out = folder / f"raw{count}", folder / f"out{count}"
        write_raw(raw, count)
        results[f"plan {count} pairs"] = measure(plan, raw, out)
        results[f"build {count} pairs"] = measure_build(raw, out)
        results[f"finalise again {count} pairs"] = measure_build(raw, out)
        shutil.rmtree(raw)
    paths = [write_index(folder, size) for size in SIZES]
    for path, size in zip(paths, SIZES, strict=True):
        results[f"open {size}"] = measure(open_it, path)
        results[f"mix and plan {size}"] = measure(mix_and_plan, [path])
    paper = [write_index(folder, size) for size in (100_000_000, 8_000_000, 2_000_001, 10_000_001)]
    results["mix and plan the paper's 120 million"] = measure(mix_and_plan, paper)
    return results


def measure_build(raw: Path, out: Path) -> dict[str, Any]:
    """The build starts processes of its own, so it runs in this one."""
    start = time.perf_counter()
    result = build(raw, out)
    return {"seconds": round(time.perf_counter() - start, 3), **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=26_786)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), arguments.pairs)
    for name, values in results.items():
        print(f"{name:40} {values}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
