"""A simulated OC20 of 134 million frames: what planning, finalising, opening and mixing cost, and how they grow.

Two halves. The first makes a raw archive with the real number of files (26,786 pairs by default) but a thousandth of
the frames in each (5), cut into the real number of parts (4,465 of six pairs), and times plan, convert, finalise and a
second run of the same command; costs per file and part are the real ones, costs per frame a thousandth. The second
makes data sets of 10^5 to 1.34·10^8 structures with true manifests and indexes, whose shards are all links to one real
shard, and times opening one, and mixing, planning and reading the first batches, each in a process of its own.

    python benchmarks/scale.py [--pairs 26786] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import lzma
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jmp_data.build import BuildSettings, choose_engine, plan_build, run_array_part, run_build, run_finalize
from jmp_data.shards.dataset import BLOCKS_FILE, SHARDS_FILE, open_dataset
from jmp_data.shards.formats import digest_file
from jmp_data.shards.manifest import MANIFEST_NAME, FileDigest
from jmp_data.shards.summary import SUMMARY_FILE, DatasetSummary
from jmp_data.shards.write_dataset import write_dataset
from jmp_data.sources import oc20
from jmp_data.trust import TrustThresholds
from jmp_data.trust.part_trust import judge_split
from jmp_data.trust.row_facts import ROW_FACTS

FRAMES_PER_PAIR = 5
FRAMES_PER_PART = 30  # six pairs a part, as of 5,000 frames each
FRAMES_PER_SHARD = 30_000
OC20_FRAMES = 133_934_018
SIZES = (100_000, 1_000_000, 10_000_000, OC20_FRAMES)


def measure(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Run in a fresh process; seconds, peak memory above the imports, and what it returned."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (function, arguments))


def peak_kilobytes() -> int:
    """Peak resident memory of this process; `ru_maxrss` would begin with what its parent had."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    if function is first_batches:  # its imports are not what is measured
        import jmp_data.mixture
        import jmp_data.stream  # noqa: F401

    before = peak_kilobytes()
    values = timed(function, *arguments)
    return {"MB": round((peak_kilobytes() - before) / 1024, 1), **values}


def timed(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Seconds of the wall's clock and of processors, those of processes that it waited for included; its result."""
    start, before = time.perf_counter(), os.times()
    result = function(*arguments)
    after = os.times()
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(sum(after[:4]) - sum(before[:4]), 3),
        **(result or {}),
    }


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


def planned(raw: Path, out: Path) -> Any:
    oc20.MAX_STRUCTURES_PER_PART = FRAMES_PER_PART
    return plan_build(["oc20"], raw, out, settings=BuildSettings())


def plan(raw: Path, out: Path) -> dict[str, Any]:
    return {"parts": sum(len(build.jobs) for build in planned(raw, out))}


def convert(raw: Path, out: Path) -> dict[str, Any]:
    run_array_part(planned(raw, out), (1, 1), choose_engine(workers=2, scheduler=None), lambda entry: None)
    return {}


def finalise(raw: Path, out: Path) -> dict[str, Any]:
    (done,) = run_finalize(planned(raw, out))
    return {"structures": done.manifest.num_structures, "shards": len(done.manifest.shards)}


def build_again(raw: Path, out: Path) -> dict[str, Any]:
    list(run_build(planned(raw, out), choose_engine(workers=2, scheduler=None), lambda entry: None))
    return {}


def write_template(folder: Path) -> Path:
    """One real shard, as a part of 30,000 frames makes it."""
    import loader

    block = loader.make_slabs(FRAMES_PER_SHARD)
    rows = (block.structure(row) for row in range(len(block)))
    write_dataset(rows, folder / "template" / "train", schema=block.schema)
    return folder / "template" / "train"


def write_large(folder: Path, template: Path, structures: int) -> Path:
    """A data set of about that size: the same shard again and again as hard links, under true indexes and a manifest.

    Returns:
        Its folder.
    """
    source = open_dataset(template)
    (shard,) = source.manifest.shards
    count = max(1, round(structures / len(source)))
    target = folder / f"n{structures}" / "train"
    for path in template.rglob("zarr.json"):
        (target / path.relative_to(template)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.relative_to(template))
    natoms = np.lib.format.open_memmap(target / "natoms.npy", mode="w+", dtype=np.int32, shape=(count * len(source),))
    natoms.reshape(count, -1)[:] = source.natoms
    natoms.flush()
    for name in (BLOCKS_FILE, SHARDS_FILE):
        once = np.load(template / name)
        np.save(target / name, np.tile(once, (count, *[1] * (once.ndim - 1))))
    shards = []
    for number in range(count):
        files = {numbered(name, number): digest for name, digest in shard.files.items()}
        for name, final in zip(shard.files, files, strict=True):
            (target / final).parent.mkdir(parents=True, exist_ok=True)
            os.link(template / name, target / final)
        shards.append(replace(shard, files=files, part=f"{number:024x}"))
    manifest = replace(
        source.manifest,
        name=f"n{structures}",
        shards=tuple(shards),
        files={name: digest_file(target / name) for name in source.manifest.files},
        raw_files={name: FileDigest(structures, f"{number:064d}") for number, name in enumerate(raw_names(structures))},
        content_sha256=f"{structures:064d}",
    )
    payload = manifest.to_bytes()
    (target / MANIFEST_NAME).write_bytes(payload)
    (target / SUMMARY_FILE).write_bytes(DatasetSummary.of(manifest, payload).to_bytes())
    return target


def write_facts(folder: Path, structures: int) -> list[Path]:
    """What parts keep of their structures for the judgement of a split of that size; nothing in it is remarkable."""
    random = np.random.default_rng(0)
    compositions = random.integers(0, 1 << 63, 50_000, np.uint64)
    folder.mkdir(parents=True)
    paths = []
    for number in range(max(1, structures // FRAMES_PER_SHARD)):
        facts = np.empty(min(structures, FRAMES_PER_SHARD), ROW_FACTS)
        facts["composition"] = random.choice(compositions, len(facts))
        facts["geometry"] = random.integers(0, 1 << 63, len(facts), np.uint64)
        facts["energy"] = random.standard_normal(len(facts), np.float32)
        facts["force"] = random.random(len(facts), np.float32)
        paths.append(folder / f"{number}.npz")
        np.savez(paths[-1], facts=facts, ids=np.zeros(0, np.uint8), id_bytes=1, found=np.frombuffer(b"[]", np.uint8))
    return paths


def judge(paths: list[Path]) -> dict[str, Any]:
    return {"flags": len(judge_split(paths, TrustThresholds()))}


def raw_names(structures: int) -> list[str]:
    """Raw files of a data set of that size, two for 5,000 frames."""
    folder = "s2ef_train_all/s2ef_train_all"
    return [f"{folder}/{number}.{kind}.xz" for number in range(structures // 5_000) for kind in ("extxyz", "txt")]


def numbered(name: str, shard: int) -> str:
    """Name of a shard file of the template (`array/c/0/...`) under another shard number."""
    array, axis, _, *rest = name.split("/")
    return "/".join([array, axis, str(shard), *rest])


def open_it(path: Path) -> dict[str, Any]:
    dataset = open_dataset(path)
    return {"structures": len(dataset), "blocks": dataset.num_blocks, "natoms": len(dataset.natoms)}


def first_batches(paths: list[Path]) -> dict[str, Any]:
    """Open a mixture, plan an epoch and read its first hundred batches."""
    from jmp_data.mixture import Mixture
    from jmp_data.stream import StreamLoader

    start = time.perf_counter()
    mixture = Mixture.from_datasets({path.parent.name: path for path in paths}, temperature=2.0)
    mixed = time.perf_counter()
    stream = StreamLoader(mixture, batch_size=32, seed=0)
    batches = iter(stream)
    next(batches)
    first = time.perf_counter()
    for _ in range(99):
        next(batches)
    return {
        "mix_seconds": round(mixed - start, 3),
        "first_batch_seconds": round(first - mixed, 3),
        "99_more_seconds": round(time.perf_counter() - first, 3),
        "samples": mixture.epoch_size,
    }


def run(folder: Path, pairs: int, note: Callable[[str, dict[str, Any]], None]) -> None:
    template = write_template(folder)
    for size in SIZES:
        path = write_large(folder, template, size)
        note(f"open {size}", measure(open_it, path))
        note(f"first batches {size}", measure(first_batches, [path]))
    paper = [write_large(folder, template, size) for size in (100_000_000, 8_000_000, 2_000_001, 10_000_001)]
    note("first batches of the paper's 120 million", measure(first_batches, paper))
    for size in SIZES:
        note(f"judge {size}", measure(judge, write_facts(folder / f"facts{size}", size)))
        shutil.rmtree(folder / f"facts{size}")
    for count in (max(1, pairs // 100), max(1, pairs // 10), pairs):
        raw, out = folder / f"raw{count}", folder / f"out{count}"
        write_raw(raw, count)
        note(f"plan {count} pairs", measure(plan, raw, out))
        note(f"convert {count} pairs", timed(convert, raw, out))  # starts processes of its own
        note(f"finalise {count} pairs", measure(finalise, raw, out))
        note(f"build again {count} pairs", measure(build_again, raw, out))
        note(f"open {count} pairs", measure(open_it, out / "oc20" / "train"))
        shutil.rmtree(raw)
        shutil.rmtree(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=26_786)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jmp-data", "numpy", "numba", "torch")},
    }
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC {results}", flush=True)

    def note(name: str, values: dict[str, Any]) -> None:
        results[name] = values
        print(f"{name:42} {values}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.pairs, note)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
