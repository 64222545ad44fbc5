"""The numbers that decide what is set aside and what is flagged, as a manifest states them for its source."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RecordReason = Literal["atoms_on_top", "atoms_too_close", "large_force", "net_force"]
"""What a record shows by itself."""


class TrustThresholds(BaseModel):
    """Limits of the physical checks, the section `trust:` of a manifest; None turns a check off.

    The defaults are far outside of what any of the published sets should hold: they are meant to find broken records,
    not rare ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    quarantine: tuple[RecordReason, ...] = ("atoms_on_top",)
    """Findings that set a record aside; all others are flagged. Outliers and repeats can only be flagged."""
    on_top_distance: float | None = Field(default=0.01, gt=0)
    """Å; two atoms (or an atom and an image) nearer than this are one atom written twice."""
    min_distance: float | None = Field(default=0.4, gt=0)
    """Å; two atoms (or an atom and an image) nearer than this are no structure. H2 has 0.74 Å."""
    max_force: float | None = Field(default=300.0, gt=0)
    """eV/Å; length of the force on any atom."""
    max_net_force: float | None = Field(default=0.1, gt=0)
    """eV/Å times the square root of the number of atoms; sum of forces on an isolated molecule without fixed atoms."""
    force_outlier: float | None = Field(default=50.0, gt=0)
    """Robust standard deviations of the largest force from the median of its composition."""
    min_force_deviation: float = Field(default=50.0, ge=0)
    """eV/Å; a largest force this near to the median is no outlier, however narrow the others lie."""
    energy_outlier: float | None = Field(default=30.0, gt=0)
    """Robust standard deviations of the energy per atom from the median of its composition."""
    min_energy_deviation: float = Field(default=0.5, ge=0)
    """eV/atom; an energy this near to the median is no outlier, however narrow the others lie."""
    min_group: int = Field(default=20, ge=4)
    """Structures of one composition in a split that robust statistics need; smaller groups are not judged."""
    duplicates: bool = True
    """Whether structures that repeat an earlier one of the split, atom by atom, are looked for."""
