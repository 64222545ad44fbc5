"""The writers, read back by tools that share no code with them: ASE, h5py, lmdb with pickle, NumPy."""

from __future__ import annotations

import lzma
import pickle
import pickletools
from pathlib import Path

import ase.io
import h5py
import lmdb
import numpy as np
import pytest

from jmp_data.demo import (
    FormulaGroup,
    LabelledFrame,
    MoleculeTrajectory,
    Reaction,
    pickle_record,
    write_ani1x,
    write_oc20_split,
    write_oc22_split,
    write_rmd17_molecule,
    write_rmd17_splits,
    write_transition1x,
)
from tests.shared import SHARED, needs_shared


def make_frames(count: int, seed: int = 0) -> list[LabelledFrame]:
    random = np.random.default_rng(seed)
    return [
        LabelledFrame(
            atomic_numbers=random.integers(1, 84, 5 + index),
            positions=random.normal(size=(5 + index, 3)) * 10,
            energy=float(random.normal() * 1e4),
            forces=random.normal(size=(5 + index, 3)),
            cell=np.diag([10.1, 11.2, 30.3]) + random.normal(size=(3, 3)),
            tags=random.integers(0, 3, 5 + index),
            fixed=random.random(5 + index) < 0.5,
            system=100 + index,
            frame=index * 7,
            reference_energy=float(random.normal() * 1e2),
            adsorbates=index % 2,
        )
        for index in range(count)
    ]


def read_lines(path: Path) -> list[str]:
    return lzma.decompress(path.read_bytes()).decode().splitlines()


def test_oc20_reads_back_with_ase(tmp_path: Path) -> None:
    frames = make_frames(5)
    paths = write_oc20_split(tmp_path, "s2ef_train_200K", frames, frames_per_file=2)
    folder = tmp_path / "s2ef_train_200K" / "s2ef_train_200K"
    assert paths == [folder / f"{number}.{suffix}.xz" for number in range(3) for suffix in ("extxyz", "txt")]

    read = []
    for number in range(3):
        with lzma.open(folder / f"{number}.extxyz.xz", "rt") as stream:
            read += ase.io.read(stream, ":", format="extxyz")
    lines = [line for number in range(3) for line in read_lines(folder / f"{number}.txt.xz")]
    assert len(read) == len(lines) == 5
    for atoms, line, frame in zip(read, lines, frames, strict=True):
        assert np.array_equal(atoms.numbers, frame.atomic_numbers)
        np.testing.assert_allclose(atoms.positions, frame.positions, rtol=0, atol=5.1e-9)
        np.testing.assert_array_equal(atoms.cell, frame.cell)
        assert atoms.pbc.all()
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), frame.forces, rtol=0, atol=5.1e-9)
        assert atoms.get_potential_energy() == frame.energy
        assert np.array_equal(atoms.get_tags(), frame.tags)
        held = atoms.constraints[0].index if atoms.constraints else []
        assert np.array_equal(np.flatnonzero(frame.fixed), held)
        assert line.split(",")[:2] == [f"random{frame.system}", f"frame{frame.frame}"]
        assert float(line.split(",")[2]) == frame.reference_energy


@needs_shared
def test_oc20_rows_are_formatted_like_a_real_file_of_the_layout(tmp_path: Path) -> None:
    assert SHARED is not None
    sample = (SHARED / "samples/oc20/toy_c3h8_relax.extxyz").read_text().splitlines()[2]
    write_oc20_split(tmp_path, "split", make_frames(1))
    row = read_lines(tmp_path / "split/split/0.extxyz.xz")[2]
    width = len("Cu") + 3 * 17 + 3 + 9 + 3 * 17
    assert len(row) == width
    assert [i for i, c in enumerate(sample[:width]) if c == "."] == [i for i, c in enumerate(row) if c == "."]


def read_lmdb(path: Path) -> list[object]:
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        length = pickle.loads(transaction.get(b"length"))
        assert environment.stat()["entries"] == length + 1
        return [pickle.loads(transaction.get(str(index).encode())) for index in range(length)]


@pytest.mark.parametrize("generation", ["pyg1", "pyg2", "pyg2_renamed"])
def test_oc22_reads_back_with_lmdb_and_pickle(tmp_path: Path, generation: str) -> None:
    frames = make_frames(3)
    (path,) = write_oc22_split(tmp_path, "train", frames, generations=[generation])  # type: ignore[list-item]
    assert path == tmp_path / "s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total/train/data.0000.lmdb"
    assert sorted(file.name for file in path.parent.iterdir()) == ["data.0000.lmdb", "data.0000.txt"]
    assert [line.split(",")[1] for line in path.with_suffix(".txt").read_text().splitlines()] == [
        "clean",
        "adslab",
        "clean",
    ]
    for data, frame in zip(read_lmdb(path), frames, strict=True):
        fields = vars(data) if generation == "pyg1" else data.to_dict()  # type: ignore[attr-defined]
        assert ("_store" in vars(data)) == (generation != "pyg1")
        energy, forces = ("energy", "forces") if generation == "pyg2_renamed" else ("y", "force")
        assert fields[energy] == frame.energy
        assert isinstance(fields[energy], float)
        np.testing.assert_array_equal(fields[forces].numpy(), frame.forces.astype(np.float32))
        np.testing.assert_array_equal(fields["pos"].numpy(), frame.positions.astype(np.float32))
        np.testing.assert_array_equal(fields["cell"].numpy(), frame.cell.astype(np.float32)[None])
        assert np.array_equal(fields["atomic_numbers"].numpy(), frame.atomic_numbers)
        assert fields["atomic_numbers"].is_floating_point()
        assert np.array_equal(fields["tags"].numpy(), frame.tags)
        assert np.array_equal(fields["fixed"].numpy() == 1, frame.fixed)
        assert (fields["sid"], fields["fid"], fields["natoms"]) == (frame.system, frame.frame, len(frame.positions))


def test_oc22_first_generation_has_the_published_keys_and_tensor_encoding() -> None:
    record = pickle_record(make_frames(1)[0])
    published = (
        "atomic_numbers cell edge_attr edge_index face fid fixed force id nads natoms normal oc22 pos sid tags x y"
    )
    assert sorted(vars(pickle.loads(record))) == published.split()
    strings = {argument for _, argument, _ in pickletools.genops(record) if isinstance(argument, str)}
    assert {"torch._utils", "_rebuild_tensor_v2", "torch.storage", "_load_from_bytes"} <= strings


def make_group(charges: list[int]) -> FormulaGroup:
    random = np.random.default_rng(1)
    return FormulaGroup(
        atomic_numbers=np.array(charges),
        coordinates=random.normal(size=(4, len(charges), 3)),
        energy=random.normal(size=4) - 100,
        forces=random.normal(size=(4, len(charges), 3)),
        labels={"wb97x_dz.dipole": random.normal(size=(4, 3))},
    )


def test_ani1x_reads_back_with_h5py(tmp_path: Path) -> None:
    group = make_group([6, 1, 1, 1, 1, 8])
    assert group.formula == "C1H4O1"
    write_ani1x(tmp_path / "ani1x-release.h5", [group])
    with h5py.File(tmp_path / "ani1x-release.h5") as file:
        node = file["C1H4O1"]
        assert len(node) == 26
        assert node["wb97x_dz.energy"].dtype == np.float64
        assert node["coordinates"].chunks is None
        np.testing.assert_array_equal(node["wb97x_dz.energy"][:], group.energy)
        np.testing.assert_array_equal(node["wb97x_dz.forces"][:], group.forces.astype(np.float32))
        np.testing.assert_array_equal(node["coordinates"][:], group.coordinates.astype(np.float32))
        assert np.isfinite(node["wb97x_dz.dipole"][:]).all()
        assert np.isnan(node["ccsd(t)_cbs.energy"][:]).all()


@needs_shared
def test_ani1x_has_the_keys_shapes_and_types_of_real_groups(tmp_path: Path) -> None:
    assert SHARED is not None
    with h5py.File(SHARED / "samples/ani1x/ani1x-release_3groups.h5") as real:
        name, node = next(iter(real.items()))
        group = FormulaGroup(
            atomic_numbers=node["atomic_numbers"][:],
            coordinates=node["coordinates"][:],
            energy=node["wb97x_dz.energy"][:],
            forces=node["wb97x_dz.forces"][:],
        )
        assert group.formula == name
        write_ani1x(tmp_path / "ours.h5", [group])
        with h5py.File(tmp_path / "ours.h5") as file:
            assert {k: (d.shape, d.dtype) for k, d in file[name].items()} == {
                k: (d.shape, d.dtype) for k, d in node.items()
            }


@pytest.mark.parametrize("partition", ["hard", "soft", "copy"])
def test_transition1x_reads_back_with_h5py(tmp_path: Path, partition: str) -> None:
    random = np.random.default_rng(2)
    reactions = [
        Reaction(
            name=f"rxn{number:04d}",
            split=split,
            atomic_numbers=np.array([6, 7, 1, 1, 1, 8, 8]),
            positions=random.normal(size=(18, 7, 3)),
            energies=random.normal(size=18),
            forces=random.normal(size=(18, 7, 3)),
            transition_state=13,
        )
        for number, split in enumerate(["train", "train", "val", "test"])
    ]
    write_transition1x(tmp_path / "Transition1x.h5", reactions, partition=partition)  # type: ignore[arg-type]
    with h5py.File(tmp_path / "Transition1x.h5") as file:
        assert sorted(file) == ["data", "test", "train", "val"]
        assert sorted(file["data/CH3NO2"]) == [reaction.name for reaction in reactions]
        for reaction in reactions:
            node = file[reaction.split][reaction.formula][reaction.name]
            np.testing.assert_array_equal(node["positions"][:], reaction.positions)
            np.testing.assert_array_equal(node["wB97x_6-31G(d).energy"][:], reaction.energies)
            np.testing.assert_array_equal(node["wB97x_6-31G(d).forces"][:], reaction.forces)
            for endpoint, frame in {"reactant": 0, "product": 9, "transition_state": 13}.items():
                np.testing.assert_array_equal(node[endpoint]["positions"][:], reaction.positions[frame : frame + 1])
                assert node[endpoint]["wB97x_6-31G(d).energy"][:] == reaction.energies[frame]


def test_rmd17_reads_back_with_numpy(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    coords = random.normal(size=(20, 3, 3))
    labels = {"energies": random.normal(size=20), "forces": random.normal(size=(20, 3, 3))}
    trajectory = MoleculeTrajectory(name="water", nuclear_charges=np.array([8, 1, 1]), coords=coords, **labels)
    path = write_rmd17_molecule(tmp_path, trajectory)
    assert path == tmp_path / "rmd17/npz_data/rmd17_water.npz"
    with np.load(path) as arrays:
        assert sorted(arrays) == ["coords", "energies", "forces", "nuclear_charges"]
        assert arrays["nuclear_charges"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["coords"], coords)
        np.testing.assert_array_equal(arrays["forces"], labels["forces"])

    write_rmd17_splits(tmp_path, 20, split_size=8)
    for number in range(1, 6):
        lists = [
            np.loadtxt(tmp_path / f"rmd17/splits/index_{kind}_{number:02d}.csv", dtype=int)
            for kind in ("train", "test")
        ]
        assert [len(rows) for rows in lists] == [8, 8]
        assert len(np.union1d(*lists)) == 16
        assert np.union1d(*lists).max() < 20
