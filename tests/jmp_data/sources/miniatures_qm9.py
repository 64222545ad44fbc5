"""Miniature QM9 files as published: the dsgdb9nsd archive, uncharacterized.txt, MoleculeNet's SDF and CSV."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# A, B, C, mu, alpha, homo, lumo, gap, r2, zpve, U0, U, H, G, cv
WATER = (799.58812, 437.90386, 282.94545, 1.8511, 6.31, -0.2928, 0.0687, 0.3615, 19.0002, 0.021375)
WATER_ENERGIES = (-76.404702, -76.401867, -76.400922, -76.422349, 6.002)


def xyz_text(index: int, *, shift: float = 0.0) -> str:
    """One `dsgdb9nsd` file: water with a Mathematica-style exponent, energies shifted by `index` millihartree."""
    energies = [f"{value - index * 1e-3:.6f}" for value in WATER_ENERGIES[:4]]
    properties = "\t".join([*map(str, WATER), *energies, "6.002"])
    return (
        "3\n"
        f"gdb {index}\t{properties}\t\n"
        f"O\t-0.0343604951\t 0.9775395708\t {7.6015923e-3 + shift:.10f}\t-0.589706\n"
        "H\t 0.0647664923\t 2.01*^-2\t 1.5345*^-3\t 0.294853\n"
        "H\t 0.8717903737\t 1.3007924048\t 6.*^-6\t 0.294853\n"
        "1671.4222\t3803.6305\t3907.698\n"
        "O\tO\t\n"
        "InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n"
    )


def write_archive(folder: Path, texts: dict[int, str]) -> Path:
    """`dsgdb9nsd.xyz.tar.bz2`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dsgdb9nsd.xyz.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        for index, text in texts.items():
            member = tarfile.TarInfo(f"dsgdb9nsd_{index:06d}.xyz")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def write_uncharacterized(folder: Path, indices: Iterable[int]) -> Path:
    """`uncharacterized.txt`: nine lines of text that hold numbers too, the table, a ruler below it."""
    ruler = "=" * 158
    rows = [
        f"{index:8d}{'NC(=N)C#N':>43}{'NC(=N)C#N':>45}{'[NH]C(=[NH2])C#N':>45}            6.036217" for index in indices
    ]
    head = [
        "",
        "List of molecules among the 133885 GDB9 molecules for which the Corina coordinates lead to ",
        "different SMILES and InChI strings when parsed through the program Openbabel. ",
        "SMILES, the SMILES generated from the Cartesian coordinates using Openbabel, as well as the L1 norm ",
        "corresponding to the Corina and B3LYP coordinates.  ",
        "",
        ruler,
        "#   Index                           GDB17 SMILES                         SMILES for B3LYP XYZ       D_IJ",
        ruler,
    ]
    assert len(head) == 9
    path = folder / "uncharacterized.txt"
    path.write_text("\n".join([*head, *rows, ruler]) + "\n")
    return path


CSV_HEADER = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom,u298_atom,h298_atom,g298_atom"


def write_sdf_and_csv(folder: Path, indices: Iterable[int], *, named: bool = True) -> None:
    """`gdb9.sdf` (V2000, four decimals) and `gdb9.sdf.csv` (hartree, atomisation energies in kcal/mol)."""
    folder.mkdir(parents=True, exist_ok=True)
    records, rows = [], [CSV_HEADER]
    for index in indices:
        atoms = [("O", -0.0344, 0.9775, 0.0076), ("H", 0.0648, 0.0206, 0.0015), ("H", 0.8718, 1.3008, 0.0007)]
        lines = [
            f"gdb_{index}" if named else "",
            "     RDKit          3D",
            "",
            "  3  2  0  0  0  0  0  0  0  0999 V2000",
        ]
        lines += [f"{x:10.4f}{y:10.4f}{z:10.4f} {s:<3} 0  0  0  0  0  0  0  0  0  0  0  0" for s, x, y, z in atoms]
        lines += ["  1  2  1  0", "  1  3  1  0", "M  END", "$$$$"]
        records.append("\n".join(lines) + "\n")
        energies = [value - index * 1e-3 for value in WATER_ENERGIES[:4]]
        atomisation = [-213.087624, -213.974294, -214.567309, -201.407171]
        values = [*WATER, *energies, 6.002, *atomisation]
        rows.append(",".join([f"gdb_{index}", *(f"{value:.10g}" for value in values)]))
    (folder / "gdb9.sdf").write_text("".join(records))
    (folder / "gdb9.sdf.csv").write_text("\n".join(rows) + "\n")


def reference_order(count: int) -> np.ndarray:
    order = np.arange(count)
    np.random.RandomState(42).shuffle(order)
    return order
