"""How well the model keeps the symmetries of physics, and how large the effects are where it cannot.

    python -m benchmarks.model_physics [--size small] [--json]

Random weights and scale factors of the size of the released ones; a trained model has other numbers of the same order.
Energies are judged by the largest magnitude, forces likewise. What each row means is said in docs/physics.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from scipy.spatial.transform import Rotation

from benchmarks.model_inputs import make_batch, make_molecule, make_slab
from benchmarks.model_speed import build_model
from jmp_data.graphs import MOLECULE
from jmp_model.calculator import JMPCalculator
from jmp_model.finetune.scales import TargetScale
from jmp_model.inference import JMPModel
from jmp_model.model import PretrainingModel
from jmp_model.prediction_tasks import HeadOutput, PredictionTask, _sum_of_atoms

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
    """Two molecules drawn apart: change of the energy where the last pair within 8 Å is lost, as a share."""
    rows = []
    for name in ("H2O", "CH3OH"):
        first, second = molecule(name), molecule(name)

        def energy(distance: float, first: Atoms = first, second: Atoms = second) -> torch.Tensor:
            other = second.copy()
            other.positions += [distance, 0.0, 0.0]
            both = first + other
            both.set_tags(2)
            return predict(model, both)[0][0]

        cut = MOLECULE.cutoff
        gaps = np.linalg.norm(second.positions[None] + [cut, 0, 0] - first.positions[:, None], axis=-1)
        last = cut + (cut - gaps.min())
        for _ in range(30):
            gap = np.linalg.norm(second.positions[None] + [last, 0, 0] - first.positions[:, None], axis=-1).min()
            last += cut - gap
        jump = (energy(last - 1e-7) - energy(last + 1e-7)).abs()
        near = (energy(4.0) - energy(last + 1e-7)).abs()
        rows.append({"pair": name, "jump_over_energy": float((jump / energy(20.0).abs()).max()),
                     "jump_over_interaction_at_4A": float((jump / near).median())})  # fmt: skip
    return rows


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


def dynamics(model: PretrainingModel) -> list[Row]:
    """Constant-energy dynamics with gradient forces: largest change of the total energy against time step."""
    head = HeadOutput("energy", "energy", _partial(model), TargetScale(0.0, 1.0))
    task = PredictionTask("demo", (head,), "gradient", lambda natoms, periodic: MOLECULE, None)
    rows = []
    for step_fs, steps in ((1.0, 50), (0.5, 100), (0.25, 200)):
        atoms = make_molecule(0, 0)
        atoms.calc = JMPCalculator(JMPModel(model, {"demo": task}), task="demo")
        MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
        run = VelocityVerlet(atoms, timestep=step_fs * units.fs)
        total, potential = [atoms.get_total_energy()], [atoms.get_potential_energy()]
        for _ in range(steps):
            run.run(1)
            total.append(atoms.get_total_energy())
            potential.append(atoms.get_potential_energy())
        slope = np.polyfit(np.arange(steps + 1) * step_fs / 1000, total, 1)[0] / len(atoms)
        rows.append(
            {
                "step_fs": step_fs,
                "time_fs": step_fs * steps,
                "swing_of_total_eV": float(np.ptp(total)),
                "swing_of_potential_eV": float(np.ptp(potential)),
                "drift_eV_per_atom_ps": float(slope),
            }
        )
    return rows


def _partial(model: PretrainingModel) -> Callable[[Any, Any], torch.Tensor]:
    return lambda features, inputs: _sum_of_atoms(model.output.out_energy[0], features, inputs)


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
        "ideal structures, float32 against float64": precision_on_ideal_crystals(double, single),
        "dynamics of a tiny model, float64": dynamics(build_model("tiny").double().eval()),
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
