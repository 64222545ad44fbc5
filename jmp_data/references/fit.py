"""Least-squares energy references per element, and the standard deviations that remain (JMP, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.references.accumulate import NUM_ELEMENTS, StatisticsAccumulator


def fit_linear_reference(total: StatisticsAccumulator) -> npt.NDArray[np.float64]:
    """(119,) energy per atom of each element, eV; minimum-norm least squares of energy on element counts, no intercept.

    Elements that never occur, or combinations of elements that always occur together, get the minimum-norm value.
    """
    coefficients = np.zeros(NUM_ELEMENTS)
    present = np.flatnonzero(np.diag(total.gram))
    if len(present):
        gram = total.gram[np.ix_(present, present)]
        scale = 1 / np.sqrt(np.diag(gram))
        solution = np.linalg.lstsq(gram * np.outer(scale, scale), total.moment[present] * scale, rcond=1e-10)[0]
        coefficients[present] = solution * scale
    return coefficients


def _residual_moments(total: StatisticsAccumulator, coefficients: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of energy − Σ c_Z over structures, from the sums alone."""
    # Extended precision: the sum of squares is about 1e8 times its residual.
    c, gram, moment = (np.asarray(x, np.longdouble) for x in (coefficients, total.gram, total.moment))
    square = np.longdouble(total.energy_square) - 2 * (c @ moment) + c @ gram @ c
    mean = (np.longdouble(total.energy_sum) - c @ total.energy_atoms) / total.with_energy
    return float(mean), math.sqrt(max(0.0, float(square / total.with_energy - mean * mean)))


def fit_references(total: StatisticsAccumulator, *, fitted_on: str) -> dict[str, Any]:
    """References and normalisers of a split, for its manifest.

    Returns:
        `linear_reference` symbol → eV, `energy_mean`, `energy_std` of the referenced energy in eV, `force_rms` in
        eV/Å (RMS over components, mean fixed at 0 as in JMP), `fitted_on`. Keys without data are left out.
    """
    from ase.data import chemical_symbols

    fitted: dict[str, Any] = {"fitted_on": fitted_on}
    if total.with_energy:
        coefficients = fit_linear_reference(total)
        mean, std = _residual_moments(total, coefficients)
        fitted |= {
            "linear_reference": {chemical_symbols[z]: float(coefficients[z]) for z in np.flatnonzero(coefficients)},
            "energy_mean": mean,
            "energy_std": std,
        }
    if total.force_components:
        fitted["force_rms"] = math.sqrt(total.force_square / total.force_components)
    return {"fitted": fitted}


def reference_vector(linear_reference: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """(119,) lookup table by atomic number from a symbol → eV mapping."""
    from ase.data import atomic_numbers

    table = np.zeros(NUM_ELEMENTS)
    for symbol, value in linear_reference.items():
        table[atomic_numbers[symbol]] = value
    return table
