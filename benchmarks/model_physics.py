"""How well the model keeps the symmetries of physics, and how large the effects are where it cannot.

    python -m benchmarks.model_physics [--size small] [--json]

Random weights and scale factors of the size of the released ones; a trained model has other numbers of the same order.
Energies are judged by the largest magnitude, forces likewise. What each row means is said in docs/physics.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation

from benchmarks.model_inputs import make_batch, make_molecule, make_slab
from benchmarks.model_speed import build_model
from jmp_data.graphs import MOLECULE
from jmp_model.model import PretrainingModel

Row = dict[str, Any]


def predict(model: PretrainingModel, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        energy, forces = model(make_batch([atoms], dtype=next(model.parameters()).dtype))
    return energy.double(), forces.double()


def difference(found: Any, expected: Any) -> tuple[float, float]:
    pairs = zip(found, expected, strict=True)
    energy, forces = (float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return energy, forces


def with_model(model: PretrainingModel, **changes: Any) -> PretrainingModel:
    """The same weights under other settings."""
    other = PretrainingModel(replace(model.config, **changes), tasks=model.tasks).to(next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    return other.eval()


def symmetries(model: PretrainingModel) -> list[Row]:
    """Errors after rotating, shifting, and moving atoms by lattice vectors."""
    rotation = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
    matrix = torch.as_tensor(rotation)
    rows = []
    for name, atoms in (("slab", make_slab(0, 0)), ("molecule", make_molecule(9, 0))):
        base = predict(model, atoms)
        turned = atoms.copy()
        turned.set_cell(np.asarray(atoms.cell) @ rotation.T)
        turned.positions = atoms.positions @ rotation.T
        energy, forces = predict(model, turned)
        moved = atoms.copy()
        moved.positions += [3.1, -7.7, 0.3]
        found = {"rotation": (energy, torch.einsum("ji,njt->nit", matrix, forces)), "shift": predict(model, moved)}
        if atoms.pbc.any():
            wrapped = atoms.copy()
            wrapped.positions += np.random.default_rng(1).integers(-2, 3, (len(atoms), 3)) @ np.asarray(atoms.cell)
            found["lattice vectors"] = predict(model, wrapped)
        for what, out in found.items():
            energy_error, force_error = difference(out, base)
            rows.append({"structure": name, "change": what, "energy": energy_error, "forces": force_error})
    return rows


def permutations(model: PretrainingModel, count: int) -> list[Row]:
    """Effect of the order of atoms, by the rule that makes the truncated main graph symmetric."""
    rows = []
    for rule in ("reference", "symmetric"):
        ruled = with_model(model, symmetrization=rule)
        for name, atoms in (("slab", make_slab(0, 0)), ("molecule", make_molecule(9, 0))):
            base = predict(ruled, atoms)
            worst = np.zeros(2)
            for seed in range(count):
                order = np.random.default_rng(seed).permutation(len(atoms))
                energy, forces = predict(ruled, atoms[order])
                back = torch.empty_like(forces)
                back[torch.as_tensor(order)] = forces
                worst = np.maximum(worst, difference((energy, back), base))
            rows.append({"rule": rule, "structure": name, "energy": worst[0], "forces": worst[1]})
    return rows


def cutoff_jump(model: PretrainingModel) -> list[Row]:
    """Two molecules drawn apart: change of the energy where the last pair within 8 Å is lost, against all others."""
    rows = []
    for name in ("H2O", "CH3OH"):
        first, second = molecule(name), molecule(name)

        def energy(distance: float, first: Atoms = first, second: Atoms = second) -> torch.Tensor:
            other = second.copy()
            other.positions += [distance, 0.0, 0.0]
            both = first + other
            both.set_tags(2)
            return predict(model, both)[0][0]

        def nearest(distance: float, first: Atoms = first, second: Atoms = second) -> float:
            return float(
                np.linalg.norm(second.positions[None] + [distance, 0, 0] - first.positions[:, None], axis=-1).min()
            )

        last = brentq(lambda distance: nearest(distance) - MOLECULE.cutoff, 7.0, 15.0, xtol=1e-12)
        jump = (energy(last - 1e-8) - energy(last + 1e-8)).abs()
        scan = torch.stack([energy(distance) for distance in np.arange(3.0, last + 1, 0.25)])
        rows.append({"pair": name, "jump_over_swing_from_3A": float((jump / (scan.max(0)[0] - scan.min(0)[0])).max())})
    return rows


def axis_crossing(model: PretrainingModel) -> list[Row]:
    """An atom passing through the line of two others: change of the energy, against its swing along 0.5 Å."""
    bent = np.array([[0.9, 0.0, -0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 1.3], [0.0, 0.0, 2.4]])

    def energy(across: float) -> torch.Tensor:
        positions = bent.copy()
        positions[3, 0] = across
        atoms = Atoms("HCCH", positions)
        atoms.set_tags(2)
        return predict(model, atoms)[0][0]

    swing = torch.stack([energy(x) for x in np.linspace(-0.5, -0.001, 20)])
    swing = swing.max(0)[0] - swing.min(0)[0]
    return [
        {"path": f"{2 * x:.0e} Å across", "change_over_swing": float(((energy(x) - energy(-x)).abs() / swing).max())}
        for x in (1e-1, 1e-2, 1e-3, 1e-4)
    ]


def precision_on_ideal_crystals(model: PretrainingModel, single: PretrainingModel) -> list[Row]:
    """Single against double precision where atoms are collinear, with dihedrals defined there and as computed."""
    ideal = {
        "fcc Cu": bulk("Cu", "fcc", a=3.625), "bcc Fe": bulk("Fe", "bcc", a=2.875, cubic=True),
        "rocksalt NaCl": bulk("NaCl", "rocksalt", a=5.625, cubic=True), "CO2": molecule("CO2"),
    }  # fmt: skip
    rows = []
    for name, atoms in ideal.items():
        atoms.set_tags(2)
        row: Row = {"structure": name}
        for rule in ("right_angle", "as_computed"):
            exact, rounded = (predict(with_model(m, collinear=rule), atoms) for m in (model, single))
            scale = exact[0].abs().max()
            row[f"energy, {rule}"] = float((rounded[0] - exact[0]).abs().max() / scale)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "small"], default="small")
    parser.add_argument("--permutations", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.exp(torch.ones(1 << 16, dtype=torch.float64))
    single = build_model(args.size).eval()
    double = build_model(args.size).double().eval()
    results = {
        "symmetries, float64": symmetries(double),
        "symmetries, float32": symmetries(single),
        "order of atoms, float64": permutations(double, args.permutations),
        "lost pair at 8 Å, float64": cutoff_jump(double),
        "atom crossing an axis, float64": axis_crossing(double),
        "ideal structures, float32 against float64": precision_on_ideal_crystals(double, single),
    }
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for name, rows in results.items():
        print(f"\n{name}")
        for row in rows:
            print("  " + "  ".join(f"{k} {v:.1e}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
