"""Are these forces, or gradients, and do they belong to the energies? A verdict on a sample, with its evidence.

Between two near frames of one system the energy changes by minus the force times the step. The sign tells forces from
gradients, which no file says and which costs weeks when it is wrong; the ratio tells whether energies and forces are in
units that belong together. Where too few frames are near each other the verdict is that nothing was tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jmp_data.schema import Block
from jmp_data.schema.units import CODATA_2014
from jmp_data.trust import ForceSignEvidence, compare_force_sign

Verdict = Literal["force", "gradient", "unclear", "untested"]

_MIN_PAIRS = 4
_BEYOND_DOUBT = 3.0  # standard deviations of a coin that is tossed for each pair
_AGREEMENT = 0.75
_LEAST_WORK = 1e-5  # eV; less drowns in the digits of the energies
_RATIO_TOLERANCE = 0.07
_PLAUSIBLE_RATIO = (0.6, 1.6)  # units that are mixed up give other ratios than these
_MISMATCHES = {
    CODATA_2014.bohr: "forces per Å taken as per bohr",
    1 / CODATA_2014.bohr: "forces per bohr taken as per Å",
    CODATA_2014.hartree: "forces in hartree/Å taken as eV/Å",
    CODATA_2014.hartree / CODATA_2014.bohr: "forces in hartree/bohr taken as eV/Å",
    1 / CODATA_2014.hartree: "energies in hartree taken as eV",
    1 / CODATA_2014.kcal_per_mol: "energies in kcal/mol taken as eV",
    CODATA_2014.kcal_per_mol: "forces in kcal/mol/Å taken as eV/Å",
}
"""Observed over expected change → the mistake that gives it."""


@dataclass(frozen=True, slots=True)
class ForceSign:
    """Outcome of the test.

    Attributes:
        verdict: `force`, `gradient`, `unclear` (the frames contradict each other) or `untested` (too few near frames).
        pairs: pairs of near frames that could be used.
        agreement: share of them where the energy falls along the forces.
        deviations: how far from half the pairs the agreeing ones are, in standard deviations of a tossed coin.
        ratio: median of the observed over the expected change of energy; 1 where sign and units are right.
        evidence: one line for people.
    """

    verdict: Verdict
    pairs: int
    agreement: float
    deviations: float
    ratio: float
    evidence: str

    @property
    def is_beyond_doubt(self) -> bool:
        """Whether chance cannot have made the verdict."""
        return self.verdict in ("force", "gradient") and self.deviations >= _BEYOND_DOUBT

    @property
    def units_disagree(self) -> bool:
        """Whether the ratio says that energies and forces are not in units that belong together."""
        low, high = _PLAUSIBLE_RATIO
        return self.verdict in ("force", "gradient") and not low < abs(self.ratio) < high


def check_force_sign(blocks: Sequence[Block]) -> ForceSign:
    """Test the sign of forces on frames that are near to each other.

    Args:
        blocks: with energy and forces, eV and Å as declared or guessed.
    """
    evidence = sum((compare_force_sign(block) for block in blocks), ForceSignEvidence())
    usable = (np.abs(evidence.expected) > _LEAST_WORK) & (np.abs(evidence.observed) > _LEAST_WORK)
    expected, observed = evidence.expected[usable], evidence.observed[usable]
    if len(expected) < _MIN_PAIRS:
        text = f"not tested: {len(expected)} pairs of sampled frames are near enough to each other"
        return ForceSign("untested", len(expected), float("nan"), 0.0, float("nan"), text)
    agreement = float(np.mean(expected * observed > 0))
    ratios = observed / expected
    ratio = float(np.median(ratios))
    verdict: Verdict = "force" if agreement >= _AGREEMENT else "gradient" if agreement <= 1 - _AGREEMENT else "unclear"
    text = (
        f"the energy falls along the forces in {agreement:.0%} of {len(expected)} pairs of near frames, "
        f"{ratio:.3g} times as much as they say (median)"
    )
    mistake = _explain(abs(ratio)) if verdict != "unclear" else ""
    deviations = abs(2 * agreement - 1) * len(expected) ** 0.5
    return ForceSign(verdict, len(expected), agreement, deviations, ratio, text + mistake)


def _explain(ratio: float) -> str:
    for value, mistake in _MISMATCHES.items():
        if abs(ratio / value - 1) < _RATIO_TOLERANCE:
            return f"; once is expected, {ratio:.3g} looks like {mistake}"
    low, high = _PLAUSIBLE_RATIO
    return "" if low < ratio < high else "; once is expected: energies and forces do not seem to belong together"
