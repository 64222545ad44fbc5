"""Write frames in the published layout of an unpacked OC20 S2EF archive: pairs of ``N.extxyz.xz`` and ``N.txt.xz``.

The text is formatted here rather than by ASE, so that ASE's reader can serve as an independent check of it.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path

from ase.data import chemical_symbols

from jmp_data.demo.frames import LabelledFrame

FRAMES_PER_FILE = 5000
_COLUMNS = "species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3"


def write_oc20_split(
    directory: Path, split: str, frames: Sequence[LabelledFrame], *, frames_per_file: int = FRAMES_PER_FILE
) -> list[Path]:
    """Write one S2EF split as ``directory/split/split/N.extxyz.xz`` and ``N.txt.xz``; upstream doubles the folder too.

    Args:
        directory: the folder that holds the unpacked splits.
        split: published split name, such as ``s2ef_train_200K``.
        frames: written in this order.
        frames_per_file: upstream 5,000; only the last pair is shorter.

    Returns:
        The ``.extxyz.xz`` and ``.txt.xz`` files written, pair after pair.
    """
    inner = directory / split / split
    inner.mkdir(parents=True, exist_ok=True)
    (directory / split / f"README_{split}.md").write_text(
        f"# {split}\n\nDemo data in the layout of OC20 S2EF; it holds no OC20 structures.\n"
        "Line i of N.txt (system, frame, reference energy in eV) belongs to frame i of N.extxyz.\n"
    )
    written = []
    for number, start in enumerate(range(0, len(frames), frames_per_file)):
        chunk = frames[start : start + frames_per_file]
        for suffix, lines in (("extxyz", map(format_extxyz, chunk)), ("txt", map(_format_system, chunk))):
            path = inner / f"{number}.{suffix}.xz"
            with lzma.open(path, "wt", encoding="ascii", newline="\n") as stream:
                stream.writelines(lines)
            written.append(path)
    return written


def format_extxyz(frame: LabelledFrame) -> str:
    """Format one frame as OC20 does: fixed columns, eight decimals, energies in full precision.

    Args:
        frame: the frame.

    Returns:
        The atom count, header and atom rows, each ended by a newline.
    """
    lattice = " ".join(repr(float(value)) for value in frame.cell.ravel())
    free_energy = frame.energy if frame.free_energy is None else frame.free_energy
    header = (
        f'Lattice="{lattice}" Properties={_COLUMNS} '
        f'energy={float(frame.energy)!r} free_energy={float(free_energy)!r} pbc="T T T"'
    )
    rows = [
        f"{chemical_symbols[number]:<2s} {x:16.8f} {y:16.8f} {z:16.8f}  {'F' if fixed else 'T'} {tag:8d} "
        f"{fx:16.8f} {fy:16.8f} {fz:16.8f}"
        for number, (x, y, z), fixed, tag, (fx, fy, fz) in zip(
            frame.atomic_numbers, frame.positions, frame.fixed, frame.tags, frame.forces, strict=True
        )
    ]
    return "\n".join([str(len(rows)), header, *rows, ""])


def _format_system(frame: LabelledFrame) -> str:
    return f"random{frame.system},frame{frame.frame},{float(frame.reference_energy)!r}\n"
