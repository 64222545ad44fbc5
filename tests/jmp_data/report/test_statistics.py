from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from jmp_data import Structure, write_dataset
from jmp_data.report.sample import choose_blocks
from jmp_data.report.statistics import FORCE_EDGES, PICTURES, collect_statistics
from jmp_data.schema.fields import ENERGY, FORCES, Field, Schema
from jmp_data.shards import ShardDataset
from jmp_data.shards.layout import Layout
from jmp_data.shards.staging import PartRecord, finish_part, stage_shards
from tests.structures import random_structures

SCHEMA = Schema((ENERGY, FORCES, Field("gap", "structure", "float32", (), "eV", "intensive", "band gap")))


def with_gap(structure: Structure, gap: float) -> Structure:
    fields = ("atomic_numbers", "positions", "cell", "pbc", "energy", "forces", "tags", "fixed", "source_id")
    return Structure(**{name: getattr(structure, name) for name in fields}, targets={"gap": np.float32(gap)})


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return [with_gap(s, k % 7 if k % 5 else np.nan) for k, s in enumerate(random_structures(3, 150))]


@pytest.fixture(scope="module")
def dataset(structures: list[Structure], tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    return write_dataset(structures, tmp_path_factory.mktemp("set") / "train", schema=SCHEMA)


def many_blocks(structures: list[Structure], folder: Path) -> ShardDataset:
    """The same structures in blocks of ten."""
    from jmp_data.schema import Block
    from jmp_data.shards import open_dataset
    from jmp_data.shards.assemble import assemble

    layout = Layout(block_structures=10)
    blocks = iter([Block.from_structures(structures, SCHEMA)])
    shards = stage_shards(folder, "all", blocks, schema=SCHEMA, layout=layout, format="zarr")
    record = PartRecord("all", shards)
    finish_part(folder, record)
    facts = {"records_in": len(structures)}
    assemble(folder, [record], name="many", split="train", schema=SCHEMA, layout=layout, format="zarr", facts=facts)
    return open_dataset(folder)


def test_everything_agrees_with_counting_structure_by_structure(
    dataset: ShardDataset, structures: list[Structure]
) -> None:
    found = collect_statistics(dataset)
    assert found.sample.everything
    sizes = [s.natoms for s in structures]
    np.testing.assert_array_equal(found.natoms, np.bincount(sizes))
    for number in range(1, 119):
        assert found.elements[number] == sum(number in s.atomic_numbers for s in structures)
        assert found.element_atoms[number] == sum((s.atomic_numbers == number).sum() for s in structures)
    np.testing.assert_allclose(found.energy, [s.energy for s in structures])
    norms = np.concatenate([np.linalg.norm(s.forces, axis=1) for s in structures])  # type: ignore[arg-type]
    assert found.force_norms.sum() + found.weak_forces + found.strong_forces == sum(sizes)
    np.testing.assert_array_equal(found.force_norms, np.histogram(norms, FORCE_EDGES)[0])
    np.testing.assert_array_equal(found.targets["gap"], [k % 7 for k in range(150) if k % 5])


def test_referenced_energies_lack_what_elements_explain(dataset: ShardDataset, structures: list[Structure]) -> None:
    found = collect_statistics(dataset)
    counts = np.array([np.bincount(s.atomic_numbers, minlength=119) for s in structures], float)
    energies = np.array([s.energy for s in structures])
    coefficients = np.linalg.lstsq(counts, energies, rcond=1e-10)[0]
    np.testing.assert_allclose(found.referenced, energies - counts @ coefficients, atol=1e-5 * np.abs(energies).max())
    assert found.reference == "fitted on train"
    other = collect_statistics(dataset, reference_of=dataset)
    np.testing.assert_array_equal(other.referenced, found.referenced)


def test_neighbours_agree_with_ase(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    structures = [
        Structure(
            atomic_numbers=rng.integers(1, 20, 6),
            positions=rng.uniform(0, 8, (6, 3)).astype(np.float32),
            cell=np.diag(rng.uniform(7, 9, 3)).astype(np.float32),
        )
        for _ in range(9)
    ]
    found = collect_statistics(write_dataset(structures, tmp_path / "train", schema=Schema(())))
    expected = [np.bincount(neighbor_list("i", s.to_ase(), 12.0), minlength=6) for s in structures]
    np.testing.assert_array_equal(found.neighbors, np.bincount(np.concatenate(expected)))
    assert (found.cutoff, found.neighbors_of) == (12.0, 9)
    assert len(found.energy) == 0
    assert found.force_norms.sum() == 0


def test_pictures_show_different_compositions_of_several_sizes(
    dataset: ShardDataset, structures: list[Structure]
) -> None:
    found = collect_statistics(dataset)
    assert len(found.pictures) == PICTURES
    sizes = [structure.natoms for _, structure in found.pictures]
    assert sizes == sorted(sizes)
    assert sizes[-1] - sizes[0] > 5
    for place, structure in found.pictures:
        assert structure.source_id == structures[place].source_id


def test_a_large_split_is_sampled_evenly_and_counted_exactly(structures: list[Structure], tmp_path: Path) -> None:
    dataset = many_blocks(structures, tmp_path / "train")
    assert dataset.num_blocks == 15
    counts: list[int] = []
    found = collect_statistics(dataset, structures=50, progress=counts.append)
    assert found.sample.blocks.tolist() == [1, 4, 7, 10, 13]
    assert not found.sample.everything
    assert sum(counts) == found.sample.structures == 50
    expected = [structures[i].energy for b in found.sample.blocks for i in range(10 * b, 10 * b + 10)]
    np.testing.assert_allclose(found.energy, expected)
    assert found.natoms.sum() == 150
    assert not found.elements_exact
    assert found.elements.sum() > 0


def test_the_sample_of_a_huge_split_is_bounded() -> None:
    class Huge:
        block_structures = np.full(100_000, 1200)

        def __len__(self) -> int:
            return 120_000_000

    huge: Any = Huge()
    sample = choose_blocks(huge)
    assert 19_000 <= sample.structures <= 21_000
    gaps = np.diff(sample.blocks)
    assert gaps.max() - gaps.min() <= 1
