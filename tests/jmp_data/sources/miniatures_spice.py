"""A miniature SPICE release: one group a molecule, atomic units, gradients; optional data sets may be left out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

DIPEPTIDES = "SPICE Dipeptides Single Points Dataset v1.2"
AMINO_ACIDS = "SPICE Solvated Amino Acids Single Points Dataset v1.1"
PUBCHEM = "SPICE PubChem Set 6 Single Points Dataset v1.2"


def write_group(
    file: h5py.File, name: str, subset: str, num_frames: int, *, numbers=(8, 1, 1), optional: Iterable[str] = ()
) -> None:
    """One molecule. `optional` names of the data sets that some groups lack."""
    random = np.random.default_rng(len(name) * 1000 + num_frames)
    natoms = len(numbers)
    group = file.create_group(name)
    group.create_dataset("subset", data=[subset], dtype=h5py.string_dtype())
    group.create_dataset("smiles", data=["[O:1]([H:2])[H:3]"], dtype=h5py.string_dtype())
    group.create_dataset("atomic_numbers", data=np.array(numbers, np.int16))
    per_frame = {
        "conformations": ((natoms, 3), np.float32, "bohr"),
        "dft_total_energy": ((), np.float64, "hartree"),
        "dft_total_gradient": ((natoms, 3), np.float32, "hartree/bohr"),
        "formation_energy": ((), np.float64, "hartree"),
        "scf_dipole": ((3,), np.float32, "elementary_charge*bohr"),
        "scf_quadrupole": ((3, 3), np.float32, "elementary_charge*bohr^2"),
        "mbis_charges": ((natoms, 1), np.float32, "elementary_charge"),
        "mbis_dipoles": ((natoms, 3), np.float32, "elementary_charge*bohr"),
        "mbis_quadrupoles": ((natoms, 3, 3), np.float32, "elementary_charge*bohr^2"),
        "mbis_octupoles": ((natoms, 3, 3, 3), np.float32, "elementary_charge*bohr^3"),
        "mayer_indices": ((natoms, natoms), np.float32, ""),
        "wiberg_lowdin_indices": ((natoms, natoms), np.float32, ""),
    }
    for key, (shape, dtype, unit) in per_frame.items():
        if key in optional:
            continue
        dataset = group.create_dataset(key, data=random.normal(size=(num_frames, *shape)).astype(dtype))
        if unit:
            dataset.attrs["units"] = unit


def write_spice(folder: Path, groups: dict[str, tuple[str, int]], *, name: str = "SPICE-1.1.4.hdf5", **options) -> Path:
    """Group name → (subset text, conformations)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with h5py.File(path, "w") as file:
        for group, (subset, num_frames) in groups.items():
            write_group(file, group, subset, num_frames, **options)
    return path
