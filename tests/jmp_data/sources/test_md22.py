from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.data import chemical_symbols

from jmp_data.errors import RawFileError
from jmp_data.sources import md22_xyz
from jmp_data.sources.md22 import MD22, TRAIN_AND_VAL
from tests.jmp_data.sources.collecting import collect
from tests.jmp_data.sources.miniatures_rmd17 import md22_arrays, write_md22_xyz
from tests.shared import SHARED, needs_shared

KCAL = 0.04336410390059322
NUMBERS = [8, 1, 1, 6]
SAMPLE = "samples/md22/md22_Ac-Ala3-NHMe_frames0-2.xyz"


def write_npz(folder: Path, molecule: str, count: int, **changes: np.ndarray) -> dict[str, np.ndarray]:
    arrays = md22_arrays(count, NUMBERS) | changes
    np.savez(folder / f"md22_{molecule}.npz", **arrays)
    return arrays


def write_frames(path: Path, count: int, *, zipped: bool) -> dict[str, np.ndarray]:
    arrays = md22_arrays(count, NUMBERS)
    symbols = [chemical_symbols[number] for number in NUMBERS]
    frames = [(e[0], symbols, r, f) for e, r, f in zip(arrays["E"], arrays["R"], arrays["F"], strict=True)]
    write_md22_xyz(path, frames, zipped=zipped)
    return arrays


def test_splits_have_the_published_sizes_with_five_percent_to_validate(tmp_path: Path) -> None:
    arrays = write_npz(tmp_path, "buckyball-catcher", 700)
    source = MD22(part="buckyball-catcher")
    order = np.arange(700)
    np.random.RandomState(42).shuffle(order)
    expected = {"train": order[:570], "val": order[570:600], "test": order[600:]}
    assert source.splits(tmp_path) == tuple(expected)
    for split, rows in expected.items():
        got = collect(source, tmp_path, split)
        assert got.ids == [f"md22_buckyball-catcher.npz#{row}" for row in rows]
        assert got.block.energy.shape == (len(rows),)  # the column of shape (n, 1) became one number a frame
        np.testing.assert_allclose(got.block.energy, arrays["E"][rows, 0] * KCAL, rtol=1e-15)
        np.testing.assert_allclose(got.block.forces.reshape(-1, 4, 3), arrays["F"][rows] * KCAL, rtol=1e-6)
        np.testing.assert_array_equal(got.block.positions.reshape(-1, 4, 3), arrays["R"][rows].astype(np.float32))
    # As the paper's table has them, train plus validation: 6,000 of which 300 validate, and so on.
    assert {name: size - size * 5 // 100 for name, size in TRAIN_AND_VAL.items()} == {
        "Ac-Ala3-NHMe": 5700,
        "DHA": 7600,
        "stachyose": 7600,
        "AT-AT": 2850,
        "AT-AT-CG-CG": 1900,
        "buckyball-catcher": 570,
        "double-walled_nanotube": 760,
    }


def test_contiguous_splits_are_apart(tmp_path: Path) -> None:
    write_npz(tmp_path, "AT-AT", 1000)
    spans = [
        [
            int(source_id.partition("#")[2])
            for source_id in collect(MD22(part="AT-AT"), tmp_path, f"contiguous_{name}").ids
        ]
        for name in ("train", "val", "test")
    ]
    assert max(spans[0]) < 600 <= 610 <= min(spans[1])
    assert max(spans[1]) < 700 <= 710 <= min(spans[2])
    assert len(spans[2]) == 290


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("a pickle was executed",))

    odd = np.empty((), object)
    odd[()] = Bomb()
    write_npz(tmp_path, "DHA", 20, perms=odd, theory=odd, e_unit=np.array(b"kcal/mol"))
    assert len(collect(MD22(part="DHA"), tmp_path, "train").block) == 20
    forces = np.empty((20,), object)
    forces[:] = [Bomb() for _ in range(20)]
    write_npz(tmp_path, "DHA", 20, E=forces)
    with pytest.raises(RawFileError, match="E is a pickled object"):
        collect(MD22(part="DHA"), tmp_path, "train")


def test_other_units_and_shapes_are_refused(tmp_path: Path) -> None:
    write_npz(tmp_path, "DHA", 20, e_unit=np.array("eV"))
    with pytest.raises(RawFileError, match="e_unit is 'eV'"):
        MD22(part="DHA").splits(tmp_path)
    write_npz(tmp_path, "DHA", 20, F=np.zeros((20, 3, 3)))
    with pytest.raises(RawFileError, match="do not fit together"):
        MD22(part="DHA").splits(tmp_path)


@pytest.mark.parametrize("suffix", [".zip", ".xyz"])
def test_text_gives_the_same_to_its_digits(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(md22_xyz, "_FRAMES_PER_CHUNK", 7)
    arrays = write_frames(tmp_path / f"md22_stachyose{suffix}", 30, zipped=suffix == ".zip")
    source = MD22(part="stachyose")
    assert source.splits(tmp_path) == ("train",)
    got = collect(source, tmp_path, "train")
    rows = [int(source_id.partition("#")[2]) for source_id in got.ids]
    assert sorted(rows) == list(range(30))
    np.testing.assert_allclose(got.block.energy, arrays["E"][rows, 0] * KCAL, atol=1e-6 * KCAL)
    np.testing.assert_allclose(got.block.positions.reshape(-1, 4, 3), arrays["R"][rows], atol=1e-6)
    np.testing.assert_allclose(got.block.forces.reshape(-1, 4, 3), arrays["F"][rows] * KCAL, atol=1e-6)
    assert got.block.atomic_numbers[:4].tolist() == NUMBERS


def test_the_npz_is_preferred(tmp_path: Path) -> None:
    write_frames(tmp_path / "md22_DHA.zip", 5, zipped=True)
    write_frames(tmp_path / "md22_DHA.xyz", 5, zipped=False)
    assert MD22(part="DHA").plan(tmp_path, "train").parts[0].files == ("md22_DHA.zip",)
    write_npz(tmp_path, "DHA", 5)
    assert MD22(part="DHA").plan(tmp_path, "train").parts[0].files == ("md22_DHA.npz",)


def test_the_nanotube_goes_by_two_names(tmp_path: Path) -> None:
    write_npz(tmp_path, "dw_nanotube", 5)
    assert MD22(part="double-walled_nanotube").splits(tmp_path) == ("train",)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "forces|no whole number of frames|no tables|convert"),
        (lambda text: text.replace("Energy=", "energy=", 1), "line 2: no `Energy="),
        (lambda text: "x" + text, "line 1: .* is no number of atoms"),
        (lambda text: text.replace("O ", "H ", 2).replace("H ", "O ", 1), "other atoms than the first"),
        (lambda text: text.replace("H ", "Q ", 2) if text.count("Q") else text.replace("C ", "Q "), "no element 'Q'"),
        (
            lambda text: text + "5\nEnergy=1 Properties=species:S:1:pos:R:3:forces:R:3\n" + "H 0 0 0 0 0 0\n" * 4,
            "another",
        ),
    ],
)
def test_damaged_text_is_refused_with_its_line(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "md22_DHA.xyz"
    write_frames(path, 6, zipped=False)
    path.write_text(damage(path.read_text()))
    with pytest.raises(RawFileError, match=message):
        collect(MD22(part="DHA"), tmp_path, "train")


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "md22_DHA.zip"
    write_frames(path, 200, zipped=True)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(RawFileError, match=r"md22_DHA\.zip: not a whole zip"):
        MD22(part="DHA").splits(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(RawFileError, match=r"0 \.xyz files"):
        MD22(part="DHA").splits(tmp_path)


@needs_shared
@pytest.mark.parametrize("zipped", [False, True])
def test_the_real_frames_agree_with_ase(tmp_path: Path, zipped: bool) -> None:
    assert SHARED is not None
    if zipped:
        with zipfile.ZipFile(tmp_path / "md22_Ac-Ala3-NHMe.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(SHARED / SAMPLE, "md22_Ac-Ala3-NHMe.xyz")
    else:
        shutil.copy(SHARED / SAMPLE, tmp_path / "md22_Ac-Ala3-NHMe.xyz")
    got = collect(MD22(part="Ac-Ala3-NHMe"), tmp_path, "train")
    frames = ase.io.read(SHARED / SAMPLE, ":", format="extxyz")
    assert len(got.block) == len(frames) == 3
    for row, source_id in enumerate(got.ids):
        atoms, structure = frames[int(source_id.partition("#")[2])], got.block.structure(row)
        np.testing.assert_array_equal(structure.atomic_numbers, atoms.numbers)
        np.testing.assert_allclose(structure.positions, atoms.positions, atol=1e-6)
        np.testing.assert_allclose(structure.forces, atoms.get_forces() * KCAL, atol=1e-6)
        assert structure.energy == pytest.approx(atoms.info["Energy"] * KCAL, rel=1e-14)


@needs_shared
def test_golden_frame(tmp_path: Path) -> None:
    """Frame 0 of the real file, by hand with 1 kcal/mol = 0.0433641039 eV (CODATA 2014).

    E = -620726.002662 kcal/mol = -26917.2269 eV; F of atom 0 = (1.07102, 1.79039, -3.86023) kcal/mol/Å
    = (0.046444, 0.077639, -0.167395) eV/Å.
    """
    assert SHARED is not None
    shutil.copy(SHARED / SAMPLE, tmp_path / "md22_Ac-Ala3-NHMe.xyz")
    got = collect(MD22(part="Ac-Ala3-NHMe"), tmp_path, "train")
    structure = got.block.structure(got.ids.index("md22_Ac-Ala3-NHMe.xyz#0"))
    assert structure.energy == pytest.approx(-26917.2269, abs=1e-3)
    assert structure.forces is not None
    np.testing.assert_allclose(structure.forces[0], [0.046444, 0.077639, -0.167395], atol=1e-6)
    np.testing.assert_allclose(structure.positions[0], [2.04866, 3.0397, -1.90538], atol=1e-6)
    assert structure.natoms == 42
