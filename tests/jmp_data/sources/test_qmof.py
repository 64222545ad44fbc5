from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.sources import qmof
from jmp_data.sources.cif_p1 import lattice_vectors, parse_cif
from jmp_data.sources.pymatgen_json import StructureError
from jmp_data.sources.qmof import QMOF
from tests.jmp_data.sources.collecting import Collected, collect
from tests.jmp_data.sources.miniatures_crystals import (
    make_crystal,
    qmof_properties,
    qmof_structure,
    write_qmof_csv,
    write_qmof_json,
)
from tests.shared import SHARED, needs_shared

IDS = [f"qmof-{number * 7919:07x}" for number in range(20)]


def all_splits(raw: Path) -> dict[str, Collected]:
    return {split: collect(QMOF(), raw, split) for split in QMOF().splits(raw)}


def ids_of(got: Collected) -> list[str]:
    return [source_id.partition("#")[2].removesuffix(".cif") or source_id.removesuffix(".cif") for source_id in got.ids]


def write_both(raw: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    properties = [qmof_properties(qmof_id, number) for number, qmof_id in enumerate(IDS)]
    structures = [qmof_structure(qmof_id, make_crystal(number)) for number, qmof_id in enumerate(IDS)]
    write_qmof_json(raw, properties, structures)
    return properties, structures


def test_targets_and_structures_are_what_the_lists_hold(tmp_path: Path) -> None:
    write_both(tmp_path)
    for got in all_splits(tmp_path).values():
        for row, qmof_id in enumerate(ids_of(got)):
            number, structure = IDS.index(qmof_id), got.block.structure(row)
            crystal = make_crystal(number)
            np.testing.assert_array_equal(structure.atomic_numbers, crystal.atomic_numbers)
            np.testing.assert_allclose(structure.positions, crystal.cart_coords, atol=1e-6)
            np.testing.assert_allclose(structure.cell, crystal.lattice.matrix, rtol=1e-7)
            assert structure.energy == -300.0 - number
            assert structure.targets["bandgap"] == 0.25 * number
            assert structure.targets["pld"] == 3.5
            # HLE17 exists for odd entries only, HSE06 for none: null is missing, never zero.
            assert structure.targets.get("bandgap_hle17") == (0.4 * number if number % 2 else None)
            assert "bandgap_hse06" not in structure.targets
            np.testing.assert_allclose(structure.targets["ddec_charges"], 0.1 * np.arange(len(crystal)), rtol=1e-6)
            assert "magmoms" not in structure.targets


def test_lists_are_joined_by_identity_not_position(tmp_path: Path) -> None:
    properties, structures = write_both(tmp_path)
    expected = all_splits(tmp_path)
    write_qmof_json(tmp_path, properties, structures[::-1])
    for split, got in all_splits(tmp_path).items():
        assert sorted(ids_of(got)) == sorted(ids_of(expected[split]))
        for row, qmof_id in enumerate(ids_of(got)):
            assert got.block.bandgap[row] == 0.25 * IDS.index(qmof_id)


def test_splits_are_the_references(tmp_path: Path) -> None:
    write_both(tmp_path)
    order = np.arange(20)
    np.random.RandomState(42).shuffle(order)
    splits = all_splits(tmp_path)
    expected = {"train": order[:16], "val": order[16:18], "test": order[18:]}
    assert {name: ids_of(got) for name, got in splits.items()} == {
        name: [IDS[row] for row in sorted(rows)] for name, rows in expected.items()
    }
    sizes = {name: len(rows) for name, rows in qmof._reference_splits(20_375).items()}
    assert sizes == {"train": 16_300, "val": 2_038, "test": 2_037}


def test_entries_without_their_other_half_are_accounted_for(tmp_path: Path) -> None:
    properties, structures = write_both(tmp_path)
    write_qmof_json(tmp_path, properties[:-1], structures[1:])
    splits = all_splits(tmp_path)
    quarantined = {record.reason: record for got in splits.values() for record in got.quarantined}
    assert set(quarantined) == {"no_properties", "no_structure"}
    assert IDS[-1] in quarantined["no_properties"].source_id
    assert quarantined["no_structure"].source_id == f"qmof.json#{IDS[0]}"
    assert sum(len(got.block) for got in splits.values()) == 18
    assert "1 structures have no properties" in QMOF().plan(tmp_path, "train").notes


def test_table_and_cif_files_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties, _ = write_both(tmp_path / "json")
    archive, folder = tmp_path / "zip", tmp_path / "cif"
    for raw in (archive, folder):
        write_qmof_csv(raw, properties)
    texts = {qmof_id: str(CifWriter(make_crystal(number))) for number, qmof_id in enumerate(IDS)}
    with zipfile.ZipFile(archive / "relaxed_structures.zip", "w") as packed:
        for qmof_id, text in texts.items():
            packed.writestr(f"relaxed_structures/{qmof_id}.cif", text)
            (folder / f"{qmof_id}.cif").write_text(text)
    monkeypatch.setattr(qmof, "_FILES_PER_PART", 5)
    parts = QMOF().plan(folder, "train").parts
    assert [len(part.files) for part in parts] == [6, 6, 6, 2]  # the table and the part's own files
    expected = all_splits(tmp_path / "json")
    for raw in (archive, folder):
        for split, got in all_splits(raw).items():
            want = expected[split]
            assert sorted(ids_of(got)) == sorted(ids_of(want))
            for row, qmof_id in enumerate(ids_of(got)):
                one, other = got.block.structure(row), want.block.structure(ids_of(want).index(qmof_id))
                assert one.targets["bandgap"] == other.targets["bandgap"]
                assert one.energy == other.energy
                assert one.targets.get("bandgap_hle17") == other.targets.get("bandgap_hle17")
                # Files hold lengths and angles, so cells may be turned; distances to the images are the same.
                first, second = (
                    Structure(s.cell.astype(float), s.atomic_numbers, s.positions, coords_are_cartesian=True)
                    for s in (one, other)
                )
                np.testing.assert_array_equal(one.atomic_numbers, other.atomic_numbers)
                np.testing.assert_allclose(first.distance_matrix, second.distance_matrix, atol=1e-4)


def test_bad_structures_are_quarantined(tmp_path: Path) -> None:
    properties, structures = write_both(tmp_path)
    structures[3]["structure"]["sites"][0]["species"][0]["occu"] = 0.5
    structures[4]["structure"] = None
    write_qmof_json(tmp_path, properties, structures)
    reasons = {
        record.source_id.partition("#")[2]: record.reason
        for got in all_splits(tmp_path).values()
        for record in got.quarantined
    }
    assert reasons == {IDS[3]: "disordered_site", IDS[4]: "no_structure"}


def test_exchanged_or_missing_files_are_said_so(tmp_path: Path) -> None:
    properties, structures = write_both(tmp_path)
    write_qmof_json(tmp_path, structures, structures)
    with pytest.raises(RawFileError, match=r"qmof\.json: has an entry without qmof_id and outputs"):
        QMOF().splits(tmp_path)
    write_qmof_json(tmp_path, [*properties, properties[0]], structures)
    with pytest.raises(RawFileError, match=f"holds {IDS[0]} more than once"):
        QMOF().splits(tmp_path)
    (tmp_path / "qmof_database/qmof.json").write_text('{"a": 1}')
    with pytest.raises(RawFileError, match="is no JSON list"):
        QMOF().splits(tmp_path)
    (tmp_path / "qmof_database/qmof_structure_data.json").unlink()
    with pytest.raises(MissingFileError, match=r"unpack qmof_database\.zip"):
        QMOF().splits(tmp_path)
    write_qmof_csv(tmp_path, properties)
    (tmp_path / "qmof.csv").write_text("id,gap\n1,2\n")
    (tmp_path / "qmof-0000000.cif").write_text("")
    with pytest.raises(RawFileError, match="has no columns qmof_id"):
        QMOF().splits(tmp_path)


def test_cells_are_laid_as_pymatgen_lays_them() -> None:
    for parameters in ((5, 6, 7, 90, 90, 90), (5.17, 6.64, 6.82, 119.16, 112.17, 89.96), (3, 4, 5, 60, 75, 100)):
        np.testing.assert_allclose(
            lattice_vectors(*parameters), Lattice.from_parameters(*parameters).matrix, atol=1e-12
        )


def test_cifs_outside_the_layout_are_refused() -> None:
    text = str(CifWriter(make_crystal(1)))
    cases = {
        text.replace("'x, y, z'", "'x, y, z'\n  2  '-x, -y, -z'"): "symmetry",
        text.replace("_cell_length_b", "_cell_b"): "no_structure",
        text.replace("_atom_site_fract_y", "_atom_site_y"): "no_structure",
        text.rstrip().removesuffix("1") + "0.5\n": "disordered_site",
        text.replace("Na  Na0", "Xx  Na0"): "no_element",
        "": "no_structure",
    }
    for damaged, reason in cases.items():
        assert damaged != text
        with pytest.raises(StructureError) as caught:
            parse_cif(damaged)
        assert caught.value.reason == reason


@needs_shared
def test_the_real_files_agree_with_pymatgen(tmp_path: Path) -> None:
    assert SHARED is not None
    files = sorted((SHARED / "samples/qmof").glob("*.cif"))
    for path in files:
        shutil.copy(path, tmp_path)
    write_qmof_csv(tmp_path, [qmof_properties(path.stem, number) for number, path in enumerate(files)])
    splits = all_splits(tmp_path)
    assert sum(len(got.block) for got in splits.values()) == len(files) == 7
    for got in splits.values():
        assert not got.quarantined
        for row, qmof_id in enumerate(ids_of(got)):
            structure = got.block.structure(row)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = Structure.from_file(tmp_path / f"{qmof_id}.cif", site_tolerance=1e-6)
            np.testing.assert_array_equal(structure.atomic_numbers, expected.atomic_numbers)
            np.testing.assert_allclose(structure.cell, expected.lattice.matrix, atol=1e-5)
            np.testing.assert_allclose(structure.positions, expected.cart_coords, atol=2e-5)
            charges = structure.targets["ddec_charges"]
            assert len(charges) == structure.natoms
            assert abs(charges.sum()) < 1e-3


@needs_shared
def test_golden_structure(tmp_path: Path) -> None:
    """qmof-fa7cbe7, CuH4C4(NO)4, by hand.

    a = 5.17732767, alpha = 119.16035674, beta = 112.17898375, gamma = 89.96758828 degrees; the volume of such a cell,
    abc sqrt(1 - cos²a - cos²b - cos²g + 2 cos a cos b cos g), is 184.92509178 Å³ as the file itself states; c lies
    along z with 6.82348261 Å, so atom 0 at (0.99999949, 0.00000184, 0.99999921) has z = 0.99999949 a cos(beta) +
    0.00000184 b cos(alpha) + 0.99999921 c = -1.954446 - 0.000006 + 6.823477 = 4.869025 Å.
    """
    assert SHARED is not None
    shutil.copy(SHARED / "samples/qmof/qmof-fa7cbe7.cif", tmp_path)
    write_qmof_csv(tmp_path, [qmof_properties("qmof-fa7cbe7", 5)])
    (split,) = QMOF().splits(tmp_path)
    structure = collect(QMOF(), tmp_path, split).block.structure(0)
    assert structure.cell is not None
    assert abs(np.linalg.det(structure.cell.astype(float))) == pytest.approx(184.92509178, rel=1e-6)
    assert structure.cell[2].tolist() == [0.0, 0.0, np.float32(6.82348261)]
    assert structure.positions[0, 2] == pytest.approx(4.869025, abs=2e-6)
    assert structure.atomic_numbers[0] == 29
    np.testing.assert_allclose(structure.targets["ddec_charges"][:2], [0.603061, 0.113767], rtol=1e-6)
    np.testing.assert_allclose(structure.targets["cm5_charges"][:2], [0.68313, 0.127005], rtol=1e-6)
    assert structure.targets["bandgap"] == 1.25
    assert structure.energy == -305.0
    assert structure.source_id == "qmof-fa7cbe7.cif"


def test_nothing_is_parsed_twice_for_planning(tmp_path: Path) -> None:
    """Stamps decide: an edited file is read again."""
    properties, structures = write_both(tmp_path)
    assert len(QMOF().splits(tmp_path)) == 3
    write_qmof_json(tmp_path, properties[:1], structures)
    assert QMOF().splits(tmp_path) == ("val",)
    assert json.loads((tmp_path / "qmof_database/qmof.json").read_text())[0]["qmof_id"] == IDS[0]
