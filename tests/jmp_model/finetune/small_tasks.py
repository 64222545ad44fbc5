"""A small downstream data set with all kinds of targets, tasks on it, and runs of the smallest model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import molecule
from ase.calculators.lj import LennardJones

from jmp_data import Structure, write_dataset
from jmp_model.finetune.config import FinetuneConfig, load_finetune_config
from jmp_model.finetune.tasks import TaskSpec
from tests.jmp_model.train.small_runs import SMALLEST

NAMES = ("CH4", "C2H6", "CH3OH", "NH3", "CH3CHO")
GRAPH = {"cutoff": 5.0}


def labelled_molecules(count: int, seed: int, *, names: tuple[str, ...] = NAMES) -> Iterator[Structure]:
    """Rattled molecules with energies, forces, a scalar and a class."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        atoms = molecule(names[rng.integers(len(names))])
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = LennardJones(sigma=1.0, epsilon=0.2)
        yield Structure(
            atomic_numbers=atoms.numbers,
            positions=atoms.positions,
            energy=atoms.get_potential_energy() - 30.0 * len(atoms),
            forces=atoms.get_forces(),
            source_id=f"molecule {index}",
            targets={
                "gap": np.float64(3.0 + 0.1 * len(atoms) + 0.2 * rng.normal()),
                "has_oxygen": np.bool_(8 in atoms.numbers),
            },
        )


def write_splits(root: Path) -> Path:
    """Write `root/small/{train,val,test}`."""
    for seed, (split, count) in enumerate({"train": 16, "val": 6, "test": 6}.items()):
        write_dataset(labelled_molecules(count, seed), root / "small" / split)
    return root


def force_task(forces: str = "gradient", **changes: Any) -> TaskSpec:
    """Energies and forces."""
    settings: dict[str, Any] = {
        "name": "small:forces",
        "dataset": "small",
        "primary": "forces",
        "forces": forces,
        "graph": GRAPH,
        "batch_size": 4,
        "targets": {
            "energy": {"kind": "energy", "mean": "fit", "std": "fit", "references": "fit", "unit": "eV"},
            "forces": {
                "kind": "forces",
                "std": "fit",
                "coefficient": 10.0,
                "report_unit": "meV/Å",
                "report_scale": 1000,
            },
        },
    }
    return TaskSpec.model_validate(settings | changes)


def scalar_task(target: str = "gap", **changes: Any) -> TaskSpec:
    """One scalar or class per structure."""
    spec: dict[str, Any] = {"reduction": "mean", "mean": "fit", "std": "fit"}
    if target == "has_oxygen":
        spec = {"kind": "class"}
    settings: dict[str, Any] = {
        "name": f"small:{target}",
        "dataset": "small",
        "primary": target,
        "graph": GRAPH,
        "batch_size": 4,
        "targets": {target: spec},
    }
    return TaskSpec.model_validate(settings | changes)


def small_config(
    task: TaskSpec, root: Path, out: Path, *overrides: str, steps: int = 4, **values: Any
) -> FinetuneConfig:
    """A run of a few steps."""
    return load_finetune_config(
        task,
        overrides=(
            f"data.root={root}",
            f"schedule.max_steps={steps}",
            "optimizer.base_lr=0.003",
            "hardware.accelerator=cpu",
            "hardware.devices=1",
            "log_every=1",
            "scale_batches=3",
            "report=false",
            *overrides,
        ),
        out=out,
        model="tiny",
        model_changes=SMALLEST,
        **values,
    )
