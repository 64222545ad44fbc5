"""Miniature MatBench and QMOF files as published, structures written by pymatgen itself."""

from __future__ import annotations

import csv
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


def qmof_properties(qmof_id: str, number: int) -> dict[str, Any]:
    """One entry of `qmof.json`: HLE17 and HSE06 values are null where they were not computed."""
    pbe = {
        "energy_total": -300.0 - number,
        "energy_vdw": -2.0,
        "energy_elec": -298.0 - number,
        "net_magmom": float(number % 3),
        "bandgap": 0.25 * number,
        "cbm": 1.0 + 0.25 * number,
        "vbm": 1.0,
        "directgap": number % 2 == 0,
        "bandgap_spins": None,
    }
    nothing = dict.fromkeys(pbe)
    return {
        "qmof_id": qmof_id,
        "name": f"{number:06d}_FSR",
        "info": {
            "formula": "C1",
            "natoms": 3,
            "pld": 3.5,
            "lcd": 6.5,
            "density": 1.2,
            "synthesized": True,
            "doi": None,
        },
        "inputs": {"pbe": {"theory": "PBE-D3(BJ)", "encut": 520, "gamma": True}},
        "outputs": {
            "pbe": pbe,
            "hle17": dict(pbe, bandgap=0.4 * number) if number % 2 else nothing,
            "hse06_10hf": nothing,
            "hse06": nothing,
        },
    }


def qmof_structure(qmof_id: str, crystal: Structure) -> dict[str, Any]:
    """One entry of `qmof_structure_data.json`, with charges of sites."""
    crystal = crystal.copy()
    crystal.add_site_property("pbe_ddec_charge", [0.1 * site for site in range(len(crystal))])
    crystal.add_site_property("pbe_magmom", [None] * len(crystal))
    return {"qmof_id": qmof_id, "name": "any_FSR", "structure": crystal.as_dict()}


def write_qmof_json(folder: Path, properties: list[dict[str, Any]], structures: list[dict[str, Any]]) -> None:
    """`qmof_database/qmof.json` and `qmof_database/qmof_structure_data.json`."""
    database = folder / "qmof_database"
    database.mkdir(parents=True, exist_ok=True)
    (database / "qmof.json").write_text(json.dumps(properties))
    (database / "qmof_structure_data.json").write_text(json.dumps(structures))


def write_qmof_csv(folder: Path, properties: list[dict[str, Any]]) -> Path:
    """`qmof.csv`: the JSON flattened with dots, empty where it is null."""
    rows = []
    for entry in properties:
        row = {"qmof_id": entry["qmof_id"], "name": entry["name"]}
        row |= {f"info.{name}": value for name, value in entry["info"].items()}
        for theory, values in entry["outputs"].items():
            row |= {f"outputs.{theory}.{name}": value for name, value in values.items()}
        rows.append({name: "" if value is None else value for name, value in row.items()})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "qmof.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
