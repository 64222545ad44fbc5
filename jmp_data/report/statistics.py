"""The figures of one split: sizes exactly, everything else from a sample of blocks, read one at a time.

Memory holds a few numbers a sampled structure and fixed histograms of what there is per atom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.graphs import MOLECULE, PERIODIC, batch_radius_graph
from jmp_data.references.accumulate import NUM_ELEMENTS, composition_matrix
from jmp_data.references.fit import reference_vector
from jmp_data.report.sample import STRUCTURES, BlockSample, choose_blocks
from jmp_data.schema import Block, Structure
from jmp_data.shards import ShardDataset

Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

FORCE_EDGES: Final = np.logspace(-4, 3, 71)
"""eV/Å; ten bins a decade. Weaker forces are counted apart, which includes those that are exactly zero."""

GRAPH_STRUCTURES: Final = 200
"""Structures a split whose radius graphs are counted."""

PICTURES: Final = 6
LARGEST_PICTURE: Final = 300
"""Atoms; larger structures are not drawn."""

_GRAPH_BATCH_ATOMS = 4096


@dataclass(eq=False)
class SplitStatistics:
    """What a report says about one split.

    Attributes:
        dataset: the split.
        sample: what was read of it.
        natoms: (largest + 1,) structures with so many atoms; exact.
        elements: (119,) structures that hold each element.
        element_atoms: (119,) atoms of each element.
        elements_exact: whether the two above count the whole split and not the sample.
        energy: energies of the sample, eV.
        referenced: the same minus the sum of element references, eV.
        reference: which references those are; empty without any.
        force_norms: (70,) atoms whose force lies in each bin of `FORCE_EDGES`.
        weak_forces: atoms below the first bin.
        strong_forces: atoms above the last bin.
        targets: other scalar targets by name, of the sample.
        neighbors: (largest + 1,) atoms with so many neighbours within `cutoff`, of the first sampled structures.
        neighbors_of: structures that these were counted on.
        cutoff: Å; empty where no structure was counted.
        pictures: structures to draw, with their place in the split.
    """

    dataset: ShardDataset
    sample: BlockSample
    natoms: Counts = field(default_factory=lambda: np.zeros(1, np.int64))
    elements: Counts = field(default_factory=lambda: np.zeros(NUM_ELEMENTS, np.int64))
    element_atoms: Counts = field(default_factory=lambda: np.zeros(NUM_ELEMENTS, np.int64))
    elements_exact: bool = False
    energy: Values = field(default_factory=lambda: np.zeros(0))
    referenced: Values = field(default_factory=lambda: np.zeros(0))
    reference: str = ""
    force_norms: Counts = field(default_factory=lambda: np.zeros(len(FORCE_EDGES) - 1, np.int64))
    weak_forces: int = 0
    strong_forces: int = 0
    targets: dict[str, Values] = field(default_factory=dict)
    neighbors: Counts = field(default_factory=lambda: np.zeros(1, np.int64))
    neighbors_of: int = 0
    cutoff: float | None = None
    pictures: list[tuple[int, Structure]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the split."""
        return self.dataset.split


def collect_statistics(
    dataset: ShardDataset,
    reference_of: ShardDataset | None = None,
    *,
    structures: int = STRUCTURES,
    progress: Callable[[int], None] = lambda count: None,
) -> SplitStatistics:
    """Read a split, or a sample of it.

    Args:
        dataset: one split.
        reference_of: split whose element references are subtracted, usually train; the split itself by default.
        structures: how many structures to read at most, about.
        progress: called with the number of structures read.

    Raises:
        ShardError: a block is damaged.
    """
    result = SplitStatistics(dataset, choose_blocks(dataset, structures))
    result.natoms = _count_sizes(dataset)
    elements = dataset.manifest.statistics.get("elements")
    if elements is not None:
        _take_elements(result, elements)
    table, result.reference = _find_reference(reference_of or dataset)
    energies: list[Values] = []
    referenced: list[Values] = []
    others: dict[str, list[Values]] = {name: [] for name in _scalar_targets(dataset)}
    for number in result.sample.blocks:
        block = dataset.read_block(int(number))
        if not result.elements_exact:
            counts = composition_matrix(block)
            result.elements += (counts > 0).sum(axis=0)
            result.element_atoms += counts.sum(axis=0).astype(np.int64)
        if "energy" in block.columns:
            energies.append(block.energy)
            if table is not None:
                referenced.append(block.energy - composition_matrix(block) @ table)
        if "forces" in block.columns:
            _count_forces(result, block)
        for name, parts in others.items():
            parts.append(block.columns[name].astype(np.float64).reshape(-1))
        _count_neighbors(result, block)
        _choose_pictures(result, block, int(dataset.block_ptr[number]))
        progress(len(block))
    result.energy, result.referenced = _finite(energies), _finite(referenced)
    result.targets = {name: _finite(parts) for name, parts in others.items()}
    return result


def _count_sizes(dataset: ShardDataset) -> Counts:
    """Structures by number of atoms; in stretches, as `natoms` of a large split is mapped and not read."""
    total = np.zeros(1, np.int64)
    for begin in range(0, len(dataset), 1 << 20):
        total = _added(total, np.bincount(np.asarray(dataset.natoms[begin : begin + (1 << 20)])))
    return total


def _added(left: Counts, right: Counts) -> Counts:
    """The sum of two counts, the shorter one continued by zeros."""
    total = np.zeros(max(len(left), len(right)), np.int64)
    total[: len(left)] += left
    total[: len(right)] += right
    return total


def _take_elements(result: SplitStatistics, elements: Mapping[str, Any]) -> None:
    from ase.data import atomic_numbers

    for symbol, entry in elements.items():
        result.elements[atomic_numbers[symbol]] = entry["structures"]
        result.element_atoms[atomic_numbers[symbol]] = entry["atoms"]
    result.elements_exact = True


def _find_reference(dataset: ShardDataset) -> tuple[Values | None, str]:
    fitted = dataset.references.get("fitted", {})
    if not fitted.get("linear_reference"):
        return None, ""
    return reference_vector(fitted["linear_reference"]), f"fitted on {fitted.get('fitted_on', dataset.split)}"


def _scalar_targets(dataset: ShardDataset) -> list[str]:
    standard = ("energy", "forces")
    return [entry.name for entry in dataset.schema.targets if entry.row_size == 1 and entry.name not in standard]


def _finite(parts: list[Values]) -> Values:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return values[np.isfinite(values)]


def _count_forces(result: SplitStatistics, block: Block) -> None:
    norms = np.linalg.norm(block.forces.astype(np.float64), axis=1)
    norms = norms[np.isfinite(norms)]
    result.force_norms += np.histogram(norms, FORCE_EDGES)[0]
    result.weak_forces += int((norms < FORCE_EDGES[0]).sum())
    result.strong_forces += int((norms > FORCE_EDGES[-1]).sum())


def _count_neighbors(result: SplitStatistics, block: Block) -> None:
    """All neighbours within the cutoff of the models, on a share of each block."""
    share = -(-GRAPH_STRUCTURES // len(result.sample.blocks))
    rows = np.unique(np.linspace(0, len(block) - 1, min(share, len(block))).astype(np.int64))
    if len(rows) == 0 or result.neighbors_of >= GRAPH_STRUCTURES:
        return
    part = block.take(rows)
    if result.cutoff is None:
        result.cutoff = PERIODIC.cutoff if part.pbc.any() else MOLECULE.cutoff
    ends = np.flatnonzero(np.diff(part.ptr[1:] // _GRAPH_BATCH_ATOMS, append=-1) != 0) + 1
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        some = part.take(slice(int(begin), int(end)))
        graph = batch_radius_graph(some.positions, some.cell, some.pbc, some.natoms, cutoff=result.cutoff)
        found = np.bincount(np.bincount(graph.edge_index[1], minlength=some.num_atoms))
        result.neighbors = _added(result.neighbors, found)
    result.neighbors_of += len(part)


def _choose_pictures(result: SplitStatistics, block: Block, first: int) -> None:
    """Small, middle and large structures of different composition, from the first blocks that offer them."""
    if len(result.pictures) >= PICTURES or len(block) == 0:
        return
    seen = {tuple(np.bincount(s.atomic_numbers)) for _, s in result.pictures}
    by_size = np.argsort(block.natoms, kind="stable")
    by_size = by_size[block.natoms[by_size] <= LARGEST_PICTURE]
    order = by_size[_spread(len(by_size))]
    for row in order:
        structure = block.structure(int(row))
        composition = tuple(np.bincount(structure.atomic_numbers))
        if composition not in seen:
            seen.add(composition)
            result.pictures.append((first + int(row), structure))
        if len(result.pictures) >= PICTURES:
            break
    result.pictures.sort(key=lambda entry: entry[1].natoms)


def _spread(count: int) -> npt.NDArray[np.int64]:
    """0 to count − 1 in an order whose beginning is spread over the whole range; at most 200 of them."""
    if count == 0:
        return np.zeros(0, np.int64)
    golden = (np.arange(min(4 * count, 800)) * 0.6180339887498949 + 0.5) % 1.0
    _, first = np.unique((golden * count).astype(np.int64), return_index=True)
    return (golden[np.sort(first)] * count).astype(np.int64)[:200]
