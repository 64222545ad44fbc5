"""What a model asks of its graphs: one cutoff, four neighbour limits, and the tags that may carry quadruplets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs.inputs import as_array, check_cutoff, check_max_neighbors

GRAPH_NAMES: Final = ("main", "a2a", "a2ee2a", "qint")
"""The four graphs, by the prefix of their keys in a batch."""

SEARCH_ORDER: Final = ("a2a", "main", "a2ee2a", "qint")
"""Columns of a table of neighbour limits: the graph that is searched, then its subsets."""

MAX_TAG: Final = 62


@dataclass(frozen=True)
class GraphSettings:
    """Cutoff and neighbour limits of the four graphs of one structure.

    Attributes:
        cutoff: Å, the same for all four graphs.
        main: neighbours kept per target atom in the graph that carries edge embeddings.
        a2ee2a: the same for atom-to-edge and edge-to-atom messages.
        qint: the same for the middle edges of quadruplets.
        a2a: the same for atom-to-atom messages; the widest search, of which the other graphs are subsets.
        qint_tags: a qint edge stays if its source or its target has one of these tags.

    Raises:
        InvalidStructureError: a cutoff or limit that is not positive, or a tag outside 0 to 62.
    """

    cutoff: float
    main: int = 30
    a2ee2a: int = 20
    qint: int = 8
    a2a: int = 1000
    qint_tags: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        check_cutoff(self.cutoff)
        for name in GRAPH_NAMES:
            check_max_neighbors(getattr(self, name), name)
        if any(not 0 <= tag <= MAX_TAG for tag in self.qint_tags):
            raise InvalidStructureError(
                f"qint_tags {self.qint_tags} must lie between 0 and {MAX_TAG}", "graph_settings"
            )

    @classmethod
    def from_main_count(cls, n: int, cutoff: float) -> GraphSettings:
        """Settings in the published proportions: n, 20n/30, 8n/30 and 1000n/30, rounded down.

        Args:
            n: neighbours of the main graph.
            cutoff: Å.
        """
        return cls(cutoff=cutoff, main=n, a2ee2a=20 * n // 30, qint=8 * n // 30, a2a=1000 * n // 30)


@dataclass(frozen=True, eq=False)
class SettingsTable:
    """The settings of B structures as arrays.

    Attributes:
        cutoffs: (B,) float64, Å.
        limits: (B, 4) int64, columns in `SEARCH_ORDER`.
        tag_masks: (B,) int64; bit t is set if tag t is one of the qint tags.
    """

    cutoffs: npt.NDArray[np.float64]
    limits: npt.NDArray[np.int64]
    tag_masks: npt.NDArray[np.int64]


def tabulate_settings(settings: GraphSettings | Sequence[GraphSettings], nstructures: int) -> SettingsTable:
    """Settings of every structure of a batch.

    Args:
        settings: for all structures, or one for each.
        nstructures: number of structures.

    Raises:
        InvalidStructureError: another number of settings than structures.
    """
    if isinstance(settings, GraphSettings):
        limits = np.empty((nstructures, len(SEARCH_ORDER)), np.int64)
        limits[:] = _limits(settings)
        return SettingsTable(
            np.full(nstructures, settings.cutoff), limits, np.full(nstructures, _tag_mask(settings), np.int64)
        )
    if len(settings) != nstructures:
        raise InvalidStructureError(f"{len(settings)} graph settings for {nstructures} structures", "shape")
    distinct = {id(s): s for s in settings}
    number = {identity: n for n, identity in enumerate(distinct)}
    which = np.array([number[id(s)] for s in settings], np.int64)
    cutoffs = np.array([s.cutoff for s in distinct.values()], np.float64)
    limits = np.array([_limits(s) for s in distinct.values()], np.int64).reshape(-1, len(SEARCH_ORDER))
    masks = np.array([_tag_mask(s) for s in distinct.values()], np.int64)
    return SettingsTable(cutoffs[which], limits[which], masks[which])


def _limits(settings: GraphSettings) -> tuple[int, ...]:
    return tuple(getattr(settings, name) for name in SEARCH_ORDER)


def _tag_mask(settings: GraphSettings) -> int:
    return sum(1 << tag for tag in set(settings.qint_tags))


def tagged_atoms(tags: Any, ptr: npt.NDArray[np.int64], table: SettingsTable) -> npt.NDArray[np.bool_]:
    """Whether each atom has one of the qint tags of its structure.

    Args:
        tags: (N,) integer.
        ptr: (B + 1,) first atom of each structure.
        table: settings of the structures.

    Returns:
        (N,) bool.

    Raises:
        InvalidStructureError: tags of another length, or outside 0 to 62.
    """
    tags = as_array("tags", tags, None)
    if tags.shape != (ptr[-1],):
        raise InvalidStructureError(f"tags have shape {tags.shape}, expected ({ptr[-1]},)", "shape")
    if len(tags) and not 0 <= tags.min() <= tags.max() <= MAX_TAG:
        raise InvalidStructureError(f"tags run from {tags.min()} to {tags.max()}; graphs know 0 to {MAX_TAG}", "tags")
    masks = table.tag_masks
    of_atoms = masks[:1] if len(tags) and (masks == masks[0]).all() else np.repeat(masks, np.diff(ptr))
    tagged: npt.NDArray[np.bool_] = (of_atoms >> tags.astype(np.int64)) & 1 == 1
    return tagged


PERIODIC: Final = GraphSettings(cutoff=12.0)
"""OC20, OC22 and MatBench: 12 Å, 30/20/8/1000."""

MOLECULE: Final = GraphSettings(cutoff=8.0)
"""ANI-1x, Transition-1x and QM9: 8 Å, 30/20/8/1000."""
