"""Which graphs a layer holds: what a build is asked for, and what the manifest of a data set records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError
from jmp_data.graphs import GRAPH_NAMES, MOLECULE, PERIODIC, GraphSettings

LayerKind = Literal["main", "all"]

RULE: Final = 1
"""Raised whenever the same structure and settings would give other edges; layers of another rule are not served."""


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """The graphs of a layer.

    Attributes:
        kind: `main` stores the edges of the main graph, `all` those of the a2a graph; both mark which of them are in
            the narrower graphs.
        periodic: settings of structures that are periodic along any axis.
        molecule: settings of all others.
        rule: how edges were found, see `RULE`.
    """

    kind: LayerKind
    periodic: GraphSettings = PERIODIC
    molecule: GraphSettings = MOLECULE
    rule: int = RULE

    @property
    def names(self) -> tuple[str, ...]:
        """The graphs that can be had from the layer, in the order of `GRAPH_NAMES`."""
        if self.kind == "all":
            return GRAPH_NAMES
        both = (self.periodic, self.molecule)
        return tuple(n for n in GRAPH_NAMES if n != "a2a" and all(getattr(s, n) <= s.main for s in both))

    @property
    def most_neighbors(self) -> int:
        """The most edges that one atom can have in the stored list."""
        both = (self.periodic, self.molecule)
        return max(s.main if self.kind == "main" else s.a2a for s in both)

    def of_structures(self, pbc: npt.NDArray[np.bool_]) -> list[GraphSettings]:
        """What to search in each structure for this layer.

        Args:
            pbc: (n, 3) bool.
        """
        periodic, molecule = self.periodic, self.molecule
        if self.kind == "main":
            periodic, molecule = (replace(s, a2a=min(s.a2a, s.main)) for s in (periodic, molecule))
        return [periodic if any(axes) else molecule for axes in pbc.tolist()]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for keys and manifests."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> LayerSettings:
        """Inverse of `to_json`; further entries are left alone.

        Raises:
            ManifestError: an entry is missing or malformed.
        """
        try:
            both = {
                name: GraphSettings(**{**entry[name], "qint_tags": tuple(entry[name]["qint_tags"])})
                for name in ("periodic", "molecule")
            }
            return cls(kind=entry["kind"], rule=int(entry["rule"]), **both)
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"settings of stored graphs are malformed ({type(error).__name__}: {error})") from error
