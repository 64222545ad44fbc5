"""Miniature rMD17 and MD22 archives in the published layouts, values in the units of the files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], np.uint8)


def write_rmd17(folder: Path, molecule: str, count: int, *, numbers=ETHANOL, seed: int = 0, old: bool = True) -> Path:
    """`rmd17/npz_data/rmd17_<molecule>.npz` with the seven published arrays (four without the old ones)."""
    random = np.random.default_rng(seed)
    coords = random.normal(size=(count, len(numbers), 3)) * 2
    energies = -97_000 + random.normal(size=count)
    forces = random.normal(size=coords.shape) * 20
    arrays = {"nuclear_charges": numbers, "coords": coords, "energies": energies, "forces": forces}
    if old:
        arrays["old_indices"] = random.permutation(count * 5)[:count]
        arrays["old_energies"] = energies + 500
        arrays["old_forces"] = forces + 1
    path = folder / "rmd17" / "npz_data" / f"rmd17_{molecule}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **arrays)
    return path


def write_index_lists(folder: Path, count: int, size: int) -> None:
    """The five pairs `rmd17/splits/index_{train,test}_0N.csv`."""
    splits = folder / "rmd17" / "splits"
    splits.mkdir(parents=True, exist_ok=True)
    for number in range(1, 6):
        rows = np.random.default_rng(number).permutation(count)
        (splits / f"index_train_{number:02d}.csv").write_text("".join(f"{row}\n" for row in rows[:size]))
        (splits / f"index_test_{number:02d}.csv").write_text("".join(f"{row}\n" for row in rows[size : 2 * size]))


def md22_arrays(count: int, numbers, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of an MD22 archive: energies as a column, names partly bytes and partly text."""
    random = np.random.default_rng(seed)
    forces = random.normal(size=(count, len(numbers), 3)) * 20
    energies = -620_000 + random.normal(size=(count, 1))
    return {
        "type": np.array(b"d"),
        "name": np.array("tiny"),
        "code_version": np.array("0.4.11"),
        "theory": np.array("pbe+mbd"),
        "R": random.normal(size=forces.shape) * 2,
        "z": np.asarray(numbers, np.uint8),
        "F": forces,
        "E": energies,
        "E_min": energies.min(),
        "E_max": energies.max(),
        "E_mean": energies.mean(),
        "E_var": energies.var(),
        "F_min": forces.min(),
        "F_max": forces.max(),
        "F_mean": forces.mean(),
        "F_var": forces.var(),
        "r_unit": np.array("Ang"),
        "e_unit": np.array("kcal/mol"),
        "md5": np.array(b"0123456789abcdef0123456789abcdef"),
    }


def write_md22_xyz(path: Path, frames: list[tuple[float, list[str], np.ndarray, np.ndarray]], *, zipped: bool) -> None:
    """The xyz flavour: `Energy=` with a capital letter, six digits, no lattice; inside a zip or plain."""
    lines = []
    for energy, symbols, positions, forces in frames:
        lines.append(str(len(symbols)))
        lines.append(f"Energy={energy:.6f} Properties=species:S:1:pos:R:3:forces:R:3")
        for symbol, position, force in zip(symbols, positions, forces, strict=True):
            numbers = " ".join(f"{value:10.6f}" for value in (*position, *force))
            lines.append(f"{symbol} {numbers}")
    text = "\n".join(lines) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if zipped:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.with_suffix(".xyz").name, text)
    else:
        path.write_text(text)
