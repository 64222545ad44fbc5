"""The traps of the field, one test each, from a raw archive in its published layout to what is stored.

Each test writes an archive in which a reader that falls into the trap gets another number, and says which.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.build import fcc111, molecule
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal

from jmp_data import demo, radius_graph
from jmp_data.sources.matbench import MatBench
from jmp_data.sources.matbench_folds import fold_splits, plain_folds
from jmp_data.sources.qm9 import QM9
from jmp_data.sources.rmd17 import RMD17
from jmp_data.sources.spice import Spice
from jmp_data.trust import compare_force_sign
from tests.jmp_data.sources.collecting import collect
from tests.jmp_data.sources.miniatures_crystals import make_crystal, write_matbench
from tests.jmp_data.sources.miniatures_qm9 import write_archive, write_uncharacterized, xyz_text
from tests.jmp_data.sources.miniatures_rmd17 import write_rmd17
from tests.jmp_data.sources.miniatures_spice import DIPEPTIDES, write_spice
from tests.jmp_data.sources.reading import read_split
from tests.raw_archives import random_frames

HARTREE, BOHR, KCAL = 27.211386024367243, 0.5291772105638411, 0.04336410390059322


def test_gradient_is_not_force_spice(tmp_path: Path) -> None:
    """A spring between two atoms: E = k (d − d0)² / 2 pulls them together beyond d0, whatever the file calls it."""
    path = write_spice(tmp_path, {"H2": (DIPEPTIDES, 41)}, numbers=(1, 1))
    distance = np.random.default_rng(0).permutation(np.linspace(1.2, 1.8, 41))  # bohr
    k, d0 = 0.37, 1.4  # hartree/bohr², bohr
    with h5py.File(path, "r+") as file:
        group = file["H2"]
        group["conformations"][:] = 0
        group["conformations"][:, 1, 0] = distance
        group["dft_total_energy"][:] = 0.5 * k * (distance - d0) ** 2 - 1.17
        group["dft_total_gradient"][:] = 0
        group["dft_total_gradient"][:, 1, 0] = k * (distance - d0)
        group["dft_total_gradient"][:, 0, 0] = -k * (distance - d0)
    block = collect(Spice(part="dipeptides"), tmp_path, "train").block
    positions, forces = block.positions.reshape(-1, 2, 3), block.forces.reshape(-1, 2, 3)
    stretched = positions[:, 1, 0] > d0 * BOHR
    assert stretched.any()
    assert (forces[stretched, 1, 0] < 0).all()
    np.testing.assert_allclose(forces[:, 1, 0], -k * (positions[:, 1, 0] / BOHR - d0) * HARTREE / BOHR, rtol=1e-3)
    evidence = compare_force_sign(block)
    assert evidence.verdict == "right"
    assert evidence.scale == pytest.approx(1, abs=0.02)  # hartree/Å taken for hartree/bohr would show as 0.53


def test_skipped_ids_qm9(tmp_path: Path) -> None:
    """The list of excluded molecules counts from 1. As positions from 0, numbers 3 and 8 would drop 4 and 9."""
    write_archive(tmp_path, {number: xyz_text(number) for number in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12)})  # no 5
    write_uncharacterized(tmp_path, [3, 8])
    ids = [each for split in QM9().splits(tmp_path) for each in collect(QM9(), tmp_path, split).ids]
    assert sorted(int(each[-10:-4]) for each in ids) == [1, 2, 4, 6, 7, 9, 10, 11, 12]
    energies = {
        int(each[-10:-4]): energy
        for split in QM9().splits(tmp_path)
        for got in [collect(QM9(), tmp_path, split)]
        for each, energy in zip(got.ids, got.block.columns["U0"], strict=True)
    }
    # The archive's own energy of each number, not of its place: -76.404702 hartree minus a millihartree a number.
    assert energies[9] == pytest.approx((-76.404702 - 0.009) * HARTREE, rel=1e-12)


def test_conversion_direction_rmd17(tmp_path: Path) -> None:
    """1 kcal/mol is 0.0434 eV. Dividing where one should multiply makes ethanol's −4,210 eV −2,237,000 eV."""
    path = write_rmd17(tmp_path, "ethanol", 50)
    got = collect(RMD17(part="ethanol"), tmp_path, "train")
    raw = np.load(path)
    rows = [int(each.partition("#")[2]) for each in got.ids]
    np.testing.assert_allclose(got.block.energy, raw["energies"][rows] * KCAL, rtol=1e-14)
    np.testing.assert_allclose(got.block.forces, (raw["forces"][rows] * KCAL).reshape(-1, 3), rtol=1e-6)
    assert -4215 < got.block.energy.mean() < -4200


def test_nan_columns_ani1x(tmp_path: Path) -> None:
    """Most methods were run on some conformations only. NaN in the label in use costs that row; elsewhere, nothing."""
    atoms = molecule("H2O")
    energy = np.array([-76.0, np.nan, -76.2, -76.3])
    forces = np.zeros((4, 3, 3))
    forces[3, 1, 2] = np.nan
    coordinates = np.repeat(atoms.positions[None], 4, axis=0)
    coupled = np.array([np.nan, -76.3, np.nan, np.nan])
    group = demo.FormulaGroup(
        atomic_numbers=atoms.numbers,
        coordinates=coordinates,
        energy=energy,
        forces=forces,
        labels={"ccsd(t)_cbs.energy": coupled},
    )
    demo.write_ani1x(tmp_path / "ani1x-release.h5", [group])
    got = read_split("ani1x", tmp_path, "train")
    assert got.ids == ["ani1x-release.h5#H2O1/0", "ani1x-release.h5#H2O1/2"]
    assert got.block.energy.tolist() == [-76.0 * HARTREE, -76.2 * HARTREE]
    assert [(each.source_id, each.reason) for each in got.quarantined] == [
        ("ani1x-release.h5#H2O1/1", "nan_label"),
        ("ani1x-release.h5#H2O1/3", "nan_label"),
    ]


def test_adsorption_against_total_energy_oc20_oc22(tmp_path: Path) -> None:
    """`energy` is the total in both, so that they can be mixed; OC20's reference stands beside it, on its own name."""
    frames = [replace(frame, energy=-250.5, reference_energy=-248.25) for frame in random_frames(0, 3)]
    demo.write_oc20_split(tmp_path, "s2ef_train_200K", frames, frames_per_file=3)
    oc20 = read_split("oc20", tmp_path, "train").block
    assert oc20.energy.tolist() == [-250.5] * 3
    assert (oc20.energy - oc20.columns["reference_energy"]).tolist() == [-2.25] * 3  # the adsorption energy
    demo.write_oc22_split(tmp_path, "train", frames, frames_per_file=3)
    oc22 = read_split("oc22", tmp_path, "train").block
    np.testing.assert_allclose(oc22.energy, -250.5, rtol=1e-7)
    assert "reference_energy" not in oc22.columns


def test_missing_tags(tmp_path: Path) -> None:
    """Only slabs have tags; a molecule or crystal without any is all 2, never 0, which would make it frozen bulk."""
    demo.write_oc20_split(tmp_path, "s2ef_train_200K", random_frames(0, 4), frames_per_file=4)
    tags = read_split("oc20", tmp_path, "train").block.tags
    np.testing.assert_array_equal(tags, np.concatenate([frame.tags for frame in random_frames(0, 4)]))
    write_rmd17(tmp_path, "ethanol", 20)
    write_matbench(tmp_path, "mp_gap", "gap pbe", [(make_crystal(seed), 1.0) for seed in range(10)])
    assert (collect(RMD17(part="ethanol"), tmp_path, "train").block.tags == 2).all()
    assert (collect(MatBench(part="mp_gap"), tmp_path, "fold0_train").block.tags == 2).all()


def test_rotated_cell(tmp_path: Path) -> None:
    """A cell that is not laid along x must keep its atoms with it: only the cell turned would change all distances."""
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    cell = np.array([[4.0, 0, 0], [1.0, 5.0, 0], [0.5, -1.0, 6.0]]) @ turn
    crystal = Crystal(Lattice(cell), ["Na", "Cl", "O"], [[0.1, 0.2, 0.3], [0.6, 0.7, 0.4], [0.9, 0.1, 0.8]])
    write_matbench(tmp_path, "mp_gap", "gap pbe", [(crystal, 1.0)] * 5)
    stored = collect(MatBench(part="mp_gap"), tmp_path, "fold0_test").block.structure(0)
    distances = stored.to_ase().get_all_distances(mic=True)
    np.testing.assert_allclose(distances, crystal.distance_matrix, atol=1e-5)
    np.testing.assert_allclose(stored.cell, cell, atol=1e-6)


def test_unwrapped_atoms(tmp_path: Path) -> None:
    """Atoms that wandered out of the cell are stored where the file has them, and have the same neighbours."""
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0, periodic=True)
    inside = slab.get_positions()
    outside = inside + np.random.default_rng(1).integers(-3, 4, (len(slab), 3)) @ slab.cell.array
    common = {
        "atomic_numbers": slab.numbers,
        "energy": -1.0,
        "forces": np.zeros_like(inside),
        "cell": slab.cell.array,
        "tags": np.ones(len(slab), int),
        "fixed": np.zeros(len(slab), bool),
    }
    frames = [demo.LabelledFrame(positions=positions.round(8), **common) for positions in (inside, outside)]
    demo.write_oc20_split(tmp_path, "s2ef_train_200K", frames, frames_per_file=2)
    block = read_split("oc20", tmp_path, "train").block
    first, second = block.structure(0), block.structure(1)
    np.testing.assert_allclose(second.positions, outside, atol=1e-5)
    graphs = [
        radius_graph(each.positions, each.cell, each.pbc, cutoff=4.0, max_neighbors=None) for each in (first, second)
    ]
    pairs = [
        sorted(zip(*graph.edge_index.tolist(), graph.distances.round(4).tolist(), strict=True)) for graph in graphs
    ]
    assert len(pairs[0]) == len(pairs[1]) > 0
    np.testing.assert_allclose(pairs[0], pairs[1], atol=2e-4)


@pytest.mark.parametrize("count", [10, 37, 636])
def test_fold_leakage_matbench(count: int, tmp_path: Path) -> None:
    """No row is in two splits of a fold, none is left out, and each is tested in exactly one fold."""
    splits = fold_splits(plain_folds(count))
    tested = []
    for fold in range(5):
        parts = [splits[f"fold{fold}_{name}"].tolist() for name in ("train", "val", "test")]
        assert sorted(row for part in parts for row in part) == list(range(count))
        tested += parts[2]
    assert sorted(tested) == list(range(count))
    if count == 10:
        write_matbench(tmp_path, "mp_gap", "gap pbe", [(make_crystal(seed), 1.0) for seed in range(count)])
        source = MatBench(part="mp_gap")
        ids = [collect(source, tmp_path, f"fold2_{name}").ids for name in ("train", "val", "test")]
        assert sorted(each for part in ids for each in part) == [
            f"matbench_mp_gap.json.gz#mb-mp-gap-{row:02d}" for row in range(1, count + 1)
        ]
