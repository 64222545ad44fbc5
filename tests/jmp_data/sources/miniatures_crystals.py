"""Miniature MatBench and QMOF files as published, structures written by pymatgen itself."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Lattice, Structure


def make_crystal(seed: int, *, decorated: bool = False) -> Structure:
    """A triclinic cell of two to five atoms; decorated ones carry oxidation states, which show in their labels."""
    random = np.random.default_rng(seed)
    species = ["Na", "Cl", "O", "Si", "Fe"][: 2 + seed % 4]
    lattice = Lattice(np.diag(random.uniform(3, 6, 3)) + random.uniform(-0.5, 0.5, (3, 3)))
    crystal = Structure(lattice, species, random.uniform(-0.2, 1.2, (len(species), 3)))
    if decorated:
        crystal.add_oxidation_state_by_element({"Na": 1, "Cl": -1, "O": -2, "Si": 4, "Fe": 2})
    return crystal


def write_matbench(folder: Path, task: str, column: str, rows: list[tuple[Structure | dict[str, Any], Any]]) -> Path:
    """`matbench_<task>.json.gz`: one object in pandas' split orientation, index and columns before the data."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [[s.as_dict() if isinstance(s, Structure) else s, target] for s, target in rows]
    table = {"index": list(range(len(rows))), "columns": ["structure", column], "data": data}
    path = folder / f"matbench_{task}.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump(table, file)
    return path
