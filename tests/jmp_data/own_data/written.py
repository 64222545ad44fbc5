"""Random labelled structures, and the files in which other programs keep such: written as those programs write them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms


def random_atoms(count: int, seed: int = 0, *, periodic: bool = True, stress: bool = True) -> list[Atoms]:
    """Small labelled structures of changing size, tags and fixed atoms, seven eV per atom below zero."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        natoms = int(rng.integers(3, 8))
        atoms = Atoms(
            rng.choice([1, 6, 8, 29], natoms),
            positions=rng.uniform(0, 6, (natoms, 3)),
            cell=np.diag(rng.uniform(6, 9, 3)) + rng.normal(scale=0.3, size=(3, 3)) if periodic else None,
            pbc=periodic,
            tags=rng.integers(0, 3, natoms),
        )
        atoms.set_constraint(FixAtoms(np.flatnonzero(atoms.get_tags() == 0)))
        results = {"energy": -7.0 * natoms + rng.normal(), "forces": rng.normal(size=(natoms, 3))}
        if stress:
            results["stress"] = rng.normal(scale=0.01, size=6)
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def write_aselmdb(path: Path, frames: Sequence[Atoms], *, deleted: Sequence[int] = ()) -> None:
    """fairchem's ASE-LMDB: keys from 1, zlib-compressed JSON with plain lists, reserved keys beside them."""
    rows = {}
    for number, atoms in enumerate(frames, 1):
        rows[str(number)] = {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
            "pbc": atoms.pbc.tolist(),
            "tags": atoms.get_tags().tolist(),
            "constraints": [constraint.todict() for constraint in atoms.constraints],
            "calculator": "unknown",
            "calculator_parameters": {},
            "unique_id": f"{number:032x}",
            "ctime": 24.5,
            "mtime": 24.5,
            "user": "",
            "key_value_pairs": {"config": "bulk"},
            "data": {"sid": f"s{number}", "band_gap": 0.1 * number},
            **{name: np.asarray(value).tolist() for name, value in atoms.calc.results.items()},
        }
    values = {**rows, "nextid": len(frames) + 1, "metadata": {"note": "ours"}, "deleted_ids": list(deleted)}
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 26, lock=False)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            if key.isdigit() and int(key) in deleted:
                continue
            transaction.put(key.encode(), zlib.compress(json.dumps(value).encode()))
    environment.close()


def write_mace(path: Path, frames: Sequence[Atoms], *, batch: int = 4, properties_group: bool = True) -> None:
    """MACE's HDF5: a group for each structure in groups of a batch, "None" for what is missing."""
    with h5py.File(path, "w") as file:
        file.attrs["drop_last"] = False
        for number, atoms in enumerate(frames):
            config = file.create_group(f"config_batch_{number // batch}/config_{number % batch}")
            config["atomic_numbers"] = atoms.numbers
            config["positions"] = atoms.positions
            config["cell"] = atoms.cell.array
            config["pbc"] = np.array(atoms.pbc)
            config["config_type"] = "Default"
            config["weight"] = 1.0
            target = config.create_group("properties") if properties_group else config
            weights = config.create_group("property_weights")
            for name in ("energy", "forces", "stress", "virials", "dipole", "charges"):
                value = atoms.calc.results.get(name) if number != 2 or name != "stress" else None
                target[name] = "None" if value is None else value
                weights[name] = float(value is not None)
