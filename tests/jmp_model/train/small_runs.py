"""A mixture of two small labelled data sets, and a model so small that a step takes milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from jmp_data import Mixture, Structure, write_dataset
from jmp_model.train.config import PretrainConfig, load_pretrain_config

SMALLEST = {
    "emb_size_atom": 16,
    "emb_size_edge": 16,
    "emb_size_trip_in": 4,
    "emb_size_trip_out": 4,
    "emb_size_quad_in": 4,
    "emb_size_quad_out": 4,
    "emb_size_aint_in": 4,
    "emb_size_aint_out": 4,
    "emb_size_rbf": 4,
    "emb_size_cbf": 4,
    "emb_size_sbf": 4,
    "num_radial": 8,
    "num_blocks": 1,
}


def molecules(count: int, seed: int) -> Iterator[Structure]:
    """Rattled small molecules with Lennard-Jones labels."""
    rng = np.random.default_rng(seed)
    names = ("H2O", "NH3", "CH4", "C2H6", "CH3OH")
    for index in range(count):
        atoms = molecule(names[rng.integers(len(names))])
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = LennardJones(sigma=1.0, epsilon=0.2)
        yield _labelled(atoms, f"molecule {index}", offset=-100.0 * len(atoms))


def metals(count: int, seed: int) -> Iterator[Structure]:
    """Rattled four-atom metal cells with EMT labels; one atom of each is fixed."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        atoms = bulk(("Cu", "Ni", "Al")[rng.integers(3)], cubic=True)
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        atoms.calc = EMT()
        yield _labelled(atoms, f"metal {index}", offset=0.0, fixed=np.arange(len(atoms)) == 0)


def _labelled(atoms: Any, source_id: str, *, offset: float, fixed: Any = None) -> Structure:
    return Structure(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array if atoms.pbc.any() else None,
        pbc=atoms.pbc,
        energy=atoms.get_potential_energy() + offset,
        forces=atoms.get_forces(),
        fixed=fixed,
        source_id=source_id,
    )


def write_mixture(folder: Path, *, train: int = 24, val: int = 6) -> Path:
    """Write both data sets and the mixture file; returns the latter."""
    for name, make in (("molecules", molecules), ("metals", metals)):
        write_dataset(make(train, 1), folder / name / "train")
        write_dataset(make(val, 2), folder / name / "val")
    datasets: dict[str, Any] = {name: folder / name / "train" for name in ("molecules", "metals")}
    return Mixture.from_datasets(datasets, temperature=2.0).save(folder / "mix.yaml")


def small_config(mix: Path, out: Path, *overrides: str, steps: int = 6) -> PretrainConfig:
    """A run of a few steps."""
    base = load_pretrain_config(
        "pretrain",
        overrides=(
            "data.batch_size=4",
            "optimizer.peak_lr=0.003",
            "scale_batches=4",
            "checkpoint.every_steps=100",
            "hardware.accelerator=cpu",
            "hardware.devices=1",
            "data.graphs={metals: {cutoff: 4.0, max_neighbors: 12}, molecules: {cutoff: 5.0}}",
            *overrides,
        ),
        mix=mix,
        out=out,
        model="tiny",
        steps=steps,
    )
    return base.model_copy(update={"model_changes": SMALLEST})
