import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.references import StatisticsAccumulator, fit_references
from jmp_data.references.accumulate import composition_matrix
from jmp_data.references.fit import fit_linear_reference, reference_vector
from jmp_data.schema import Block, Schema
from jmp_data.schema.fields import ENERGY
from tests.structures import random_structures


def block_with_energies(seed: int, count: int, noise: float) -> tuple[Block, np.ndarray]:
    """Molecules of H, C, N, O whose energy is a linear reference of thousands of eV and some noise."""
    rng = np.random.default_rng(seed)
    natoms = rng.integers(2, 20, count).astype(np.int32)
    numbers = rng.choice([1, 6, 7, 8], natoms.sum()).astype(np.uint8)
    reference = np.zeros(119)
    reference[[1, 6, 7, 8]] = [-13.6, -1029.4, -1484.9, -2041.8]
    energy = np.add.reduceat(reference[numbers], np.concatenate([[0], np.cumsum(natoms)[:-1]]))
    columns = {
        "atomic_numbers": numbers,
        "positions": rng.normal(size=(natoms.sum(), 3)),
        "energy": energy + noise * rng.normal(size=count),
        "forces": rng.normal(size=(natoms.sum(), 3)),
    }
    return Block.from_columns(Schema(), natoms, [""] * count, columns), reference


def test_fit_agrees_with_lstsq_and_moments_with_numpy() -> None:
    block, _ = block_with_energies(0, 3000, noise=0.5)
    total = StatisticsAccumulator()
    for start in range(0, 3000, 700):
        total.add(block.take(slice(start, start + 700)))
    counts = composition_matrix(block)
    expected = np.linalg.lstsq(counts, block.energy, rcond=None)[0]
    np.testing.assert_allclose(fit_linear_reference(total), expected, atol=1e-7)
    fitted = fit_references(total, fitted_on="train")["fitted"]
    residual = block.energy - counts @ expected
    np.testing.assert_allclose(fitted["energy_std"], residual.std(), rtol=1e-6)
    np.testing.assert_allclose(fitted["energy_mean"], residual.mean(), atol=1e-6)
    np.testing.assert_allclose(fitted["force_rms"], np.sqrt((block.forces.astype(float) ** 2).mean()), rtol=1e-9)
    np.testing.assert_allclose(reference_vector(fitted["linear_reference"]), expected, atol=1e-7)


@given(st.integers(0, 1000), st.integers(1, 39))
def test_sums_merge_and_survive_json(seed: int, cut: int) -> None:
    block = Block.from_structures(random_structures(seed, 40), Schema())
    whole, left, right = StatisticsAccumulator(), StatisticsAccumulator(), StatisticsAccumulator()
    whole.add(block)
    left.add(block.take(slice(0, cut)))
    right.add(block.take(slice(cut, None)))
    left.merge(StatisticsAccumulator.from_json(right.to_json()))
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(left, name), value, rtol=1e-12, err_msg=name)
    assert StatisticsAccumulator.from_json(whole.to_json()).to_json() == whole.to_json()


def test_elements_that_always_occur_together_do_not_blow_up() -> None:
    block, _ = block_with_energies(1, 50, noise=0.0)
    one = block.take(np.zeros(50, int))
    total = StatisticsAccumulator()
    total.add(one)
    coefficients = fit_linear_reference(total)
    np.testing.assert_allclose(composition_matrix(one) @ coefficients, one.energy, rtol=1e-9)
    assert np.abs(coefficients).max() < 1e4


@given(seed=st.integers(0, 10_000), odd=st.integers(1, 3))
def test_nearly_singular_compositions(seed: int, odd: int) -> None:
    """Two elements that go together in all but a few structures: the fit still predicts as well as lstsq."""
    rng = np.random.default_rng(seed)
    carbons = rng.integers(1, 8, 400)
    hydrogens = 2 * carbons
    hydrogens[:odd] += 1
    natoms = (carbons + hydrogens).astype(np.int32)
    numbers = np.concatenate([[6] * c + [1] * h for c, h in zip(carbons, hydrogens, strict=True)]).astype(np.uint8)
    energy = -1029.4 * carbons - 13.6 * hydrogens + rng.normal(scale=0.3, size=400)
    columns = {"atomic_numbers": numbers, "positions": np.zeros((len(numbers), 3)), "energy": energy}
    block = Block.from_columns(Schema((ENERGY,)), natoms, [""] * 400, columns)
    total = StatisticsAccumulator()
    total.add(block)
    counts = composition_matrix(block)
    expected = np.linalg.lstsq(counts, energy, rcond=None)[0]
    np.testing.assert_allclose(counts @ fit_linear_reference(total), counts @ expected, atol=1e-5)
    residual = energy - counts @ expected
    np.testing.assert_allclose(
        fit_references(total, fitted_on="train")["fitted"]["energy_std"], residual.std(), rtol=1e-4
    )


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 60), max_size=6), turn=st.integers(0, 6))
def test_parts_merge_in_any_grouping(seed: int, cuts: list[int], turn: int) -> None:
    block, _ = block_with_energies(seed, 60, noise=0.5)
    edges = [0, *sorted(cuts), 60]
    parts = []
    for low, high in itertools.pairwise(edges):
        part = StatisticsAccumulator()
        part.add(block.take(slice(low, high)))
        parts.append(part)
    parts = parts[turn:] + parts[:turn]
    merged = StatisticsAccumulator()
    for part in parts:
        merged.merge(part)
    whole = StatisticsAccumulator()
    whole.add(block)
    assert (merged.structures, merged.atoms) == (whole.structures, whole.atoms)
    assert (merged.min_atoms, merged.max_atoms, merged.force_max) == (whole.min_atoms, whole.max_atoms, whole.force_max)
    np.testing.assert_allclose(fit_linear_reference(merged), fit_linear_reference(whole), rtol=1e-9, atol=1e-9)
    first, second = (fit_references(total, fitted_on="train")["fitted"] for total in (merged, whole))
    np.testing.assert_allclose(first["energy_std"], second["energy_std"], rtol=1e-6)
    np.testing.assert_allclose(first["force_rms"], second["force_rms"], rtol=1e-12)


def test_missing_labels_do_not_count() -> None:
    block, _ = block_with_energies(3, 200, noise=0.5)
    columns = {name: column.copy() for name, column in block.columns.items()}
    columns["energy"][::3] = np.nan
    columns["forces"][5] = np.nan
    total = StatisticsAccumulator()
    total.add(Block(block.natoms, columns, block.source_ids, block.schema))
    known = np.isfinite(columns["energy"])
    expected = np.linalg.lstsq(composition_matrix(block)[known], block.energy[known], rcond=None)[0]
    np.testing.assert_allclose(fit_linear_reference(total), expected, atol=1e-7)
    fitted = fit_references(total, fitted_on="train")["fitted"]
    residual = block.energy[known] - composition_matrix(block)[known] @ expected
    np.testing.assert_allclose(
        [fitted["energy_mean"], fitted["energy_std"]], [residual.mean(), residual.std()], atol=1e-6
    )
    rest = np.delete(block.forces.astype(float), 5, axis=0)
    np.testing.assert_allclose(fitted["force_rms"], np.sqrt((rest**2).mean()), rtol=1e-12)
