"""OC22-like demo systems: oxide slabs, clean or with one adsorbate, labelled by periodic GFN1-xTB at the Γ point.

Cells are small and only Γ is sampled, so the energies are not those of the extended surfaces; they are smooth functions
of the positions with exact gradients, which is what training needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk, surface
from ase.spacegroup import crystal

from jmp_data.demo.calculators import make_xtb
from jmp_data.demo.frames import LabelledFrame
from jmp_data.demo.relaxation import BULK, SURFACE, add_adsorbate, relax_and_record

_ADSORBATES = ("", "H2O", "CO", "CO2", "O")  # the empty name is a clean slab
_VACUUM = 11.0  # Å on either side; more costs no time, for the lattice sums shrink
_CLEARANCE = 1.9  # Å
_RATTLE = 0.08  # Å
_OXYGEN = 8
_FRAMES_PER_SYSTEM = 4  # many systems with few frames each teach more than few with many


def relax_oxides(count: int, first_system: int, seed: Sequence[int]) -> list[LabelledFrame]:
    """Relax random oxide slabs with random adsorbates until there are enough frames.

    Args:
        count: frames to return, exactly.
        first_system: number of the first system; later ones count up.
        seed: of every random choice.

    Returns:
        The frames, system after system.

    Raises:
        MissingExtraError: if ``tblite`` is not installed.
    """
    random = np.random.default_rng(seed)
    frames: list[LabelledFrame] = []
    system = first_system
    while len(frames) < count:
        frames += _relax_one(system, random)
        system += 1
    return frames[:count]


def _relax_one(system: int, random: np.random.Generator) -> list[LabelledFrame]:
    slab = _build_slab(_BULKS[random.integers(len(_BULKS))], random)
    adsorbate = str(random.choice(_ADSORBATES))
    if adsorbate:
        slab = add_adsorbate(slab, adsorbate, random, clearance=_CLEARANCE)
    fixed = slab.get_tags() == BULK
    slab.positions[~fixed] += random.normal(scale=_RATTLE, size=(int((~fixed).sum()), 3))
    slab.calc = make_xtb("GFN1-xTB")
    return relax_and_record(slab, fixed, max_frames=_FRAMES_PER_SYSTEM, stride=1, system=system, reference_energy=0.0)


def _build_slab(formula: str, random: np.random.Generator) -> Atoms:
    """Cut a facet on which GFN1-xTB converges and mark the lower half of the slab as bulk."""
    crystal_cell, miller, layers, repeat = _CRYSTALS[formula.removesuffix("+Zn")]
    slab = surface(crystal_cell(), miller, layers, vacuum=_VACUUM, periodic=True) * repeat
    if formula.endswith("+Zn"):
        cations = np.flatnonzero(slab.numbers != _OXYGEN)
        slab.symbols[random.choice(cations, len(cations) // 4, replace=False)] = "Zn"
    height = slab.positions[:, 2]
    slab.set_tags(np.where(height > (height.min() + height.max()) / 2, SURFACE, BULK))
    return slab


def _rutile() -> Atoms:
    sites = [(0, 0, 0), (0.3053, 0.3053, 0)]
    return crystal(["Ti", "O"], sites, spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90])


def _antifluorite() -> Atoms:
    return crystal(["Li", "O"], [(0.25, 0.25, 0.25), (0, 0, 0)], spacegroup=225, cellpar=[4.62, 4.62, 4.62, 90, 90, 90])


_Crystal = tuple[Callable[[], Atoms], tuple[int, int, int], int, tuple[int, int, int]]
_CRYSTALS: dict[str, _Crystal] = {  # cell, facet, layers of cells, repeats
    "MgO": (lambda: bulk("MgO", "rocksalt", a=4.21, cubic=True), (0, 0, 1), 1, (2, 1, 1)),
    "ZnO": (lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.21), (1, 0, 0), 2, (2, 1, 1)),
    "Li2O": (_antifluorite, (1, 1, 0), 1, (1, 1, 1)),
    "TiO2": (_rutile, (0, 0, 1), 2, (1, 1, 1)),
}
_BULKS = ("MgO", "MgO+Zn", "ZnO", "Li2O", "TiO2")
