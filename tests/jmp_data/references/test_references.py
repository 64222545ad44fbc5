import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.references import StatisticsAccumulator, fit_references
from jmp_data.references.accumulate import composition_matrix
from jmp_data.references.fit import fit_linear_reference, reference_vector
from jmp_data.schema import Block, Schema
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
