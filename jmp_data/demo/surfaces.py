"""OC20-like demo systems: small adsorbates relaxing on metal and alloy slabs, labelled by effective medium theory.

Effective medium theory (EMT) is a real interatomic potential for Al, Cu, Ag, Au, Ni, Pd and Pt. ASE's parameters for
H, C, N and O were never meant to be accurate, so the chemistry of the adsorbates is a toy; the forces are its exact
gradients all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import fcc100, fcc110, fcc111, molecule
from ase.calculators.emt import EMT
from ase.data import atomic_numbers, reference_states

from jmp_data.demo.calculators import label
from jmp_data.demo.frames import LabelledFrame
from jmp_data.demo.relaxation import BULK, SURFACE, add_adsorbate, relax_and_record

_BULKS = ("Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al", "Cu3Au", "Pt3Ni", "Pd3Cu", "Ag3Au")
_FACETS = (fcc111, fcc100, fcc110)
_SIZES = ((2, 2, 4), (3, 2, 4))
_ADSORBATES = ("H", "C", "N", "O", "CO", "NO", "N2", "OH")
_VACUUM = 6.0  # Å on either side
_CLEARANCE = 1.7  # Å
_RATTLE = 0.08  # Å
_FRAMES_PER_SYSTEM = 10
_STRIDE = 2


def relax_adsorbates(count: int, first_system: int, seed: Sequence[int]) -> list[LabelledFrame]:
    """Relax random adsorbates on random slabs until there are enough frames.

    Args:
        count: frames to return, exactly.
        first_system: number of the first system; later ones count up.
        seed: of every random choice.

    Returns:
        The frames, system after system.
    """
    random = np.random.default_rng(seed)
    frames: list[LabelledFrame] = []
    system = first_system
    while len(frames) < count:
        frames += _relax_one(system, random)
        system += 1
    return frames[:count]


def _relax_one(system: int, random: np.random.Generator) -> list[LabelledFrame]:
    slab = _build_slab(str(random.choice(_BULKS)), random)
    adsorbate = str(random.choice(_ADSORBATES))
    slab.calc = EMT()
    reference = label(slab)[0] + _energy_alone(adsorbate)
    both = add_adsorbate(slab, adsorbate, random, clearance=_CLEARANCE)
    fixed = both.get_tags() == BULK
    both.positions[~fixed] += random.normal(scale=_RATTLE, size=(int((~fixed).sum()), 3))
    both.calc = EMT()
    return relax_and_record(
        both, fixed, max_frames=_FRAMES_PER_SYSTEM, stride=_STRIDE, system=system, reference_energy=reference
    )


def _build_slab(bulk: str, random: np.random.Generator) -> Atoms:
    """Cut a random facet; ``A3B`` bulks put B on a random quarter of the sites at Vegard's lattice constant."""
    host, _, guest = bulk.partition("3")
    constants = [reference_states[atomic_numbers[symbol]]["a"] for symbol in (host, guest or host)]
    facet = _FACETS[random.integers(len(_FACETS))]
    size = _SIZES[random.integers(len(_SIZES))]
    slab = facet(host, size, a=0.75 * constants[0] + 0.25 * constants[1], vacuum=_VACUUM, periodic=True)
    if guest:
        sites = random.choice(len(slab), len(slab) // 4, replace=False)
        slab.symbols[sites] = guest
    # ASE numbers layers from the top; OC20 tags and holds what lies below the surface.
    slab.set_tags(np.where(slab.get_tags() <= 2, SURFACE, BULK))
    return slab


def _energy_alone(adsorbate: str) -> float:
    atoms = Atoms(adsorbate) if len(adsorbate) == 1 else molecule(adsorbate)
    atoms.set_initial_magnetic_moments(None)
    atoms.calc = EMT()
    return label(atoms)[0]
