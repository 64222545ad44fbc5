"""Which quantities of a data set become charts, and the sentence that stands over each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from jmp_data.graphs import MOLECULE
from jmp_data.report.axes import count_edges, plain, rebin, value_edges
from jmp_data.report.figures import Series, histogram
from jmp_data.report.page_style import SPLIT_COLORS
from jmp_data.report.statistics import FORCE_EDGES, SplitStatistics, Values


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """A figure with its title and a note."""

    title: str
    note: str
    figure: Markup


def draw_charts(splits: Sequence[SplitStatistics]) -> list[Chart]:
    """All charts of one data set; quantities that it does not have are left out.

    Args:
        splits: of one data set, in the order of their colours.
    """
    charts = [_sizes(splits), _neighbors(splits), _energies(splits), _referenced(splits), _forces(splits)]
    names = dict.fromkeys(name for split in splits for name in split.targets)
    return [chart for chart in [*charts, *(_target(splits, name) for name in names)] if chart is not None]


def _color(index: int) -> int:
    return index % SPLIT_COLORS


def _sizes(splits: Sequence[SplitStatistics]) -> Chart | None:
    if not any(split.natoms.sum() for split in splits):
        return None
    edges = count_edges([split.natoms for split in splits])
    series = [
        Series(split.name, _color(i), rebin(split.natoms, edges), int(split.natoms.sum()))
        for i, split in enumerate(splits)
    ]
    first = splits[0].natoms
    mean = float(np.arange(len(first)) @ first / max(1, first.sum()))
    used = np.flatnonzero(first)
    note = f"{splits[0].name}: {used[0]} to {used[-1]}, mean {mean:.1f}; every structure counted" if len(used) else ""
    return Chart("Atoms per structure", note, histogram(edges, series, label="atoms per structure", whole_numbers=True))


def _neighbors(splits: Sequence[SplitStatistics]) -> Chart | None:
    counted = [(i, split) for i, split in enumerate(splits) if split.neighbors.sum()]
    if not counted:
        return None
    edges = count_edges([split.neighbors for _, split in counted])
    series = [
        Series(split.name, _color(i), rebin(split.neighbors, edges), int(split.neighbors.sum())) for i, split in counted
    ]
    _, first = counted[0]
    limit = MOLECULE.main
    beyond = first.neighbors[limit + 1 :].sum() / first.neighbors.sum()
    note = (
        f"all within {plain(first.cutoff or 0)} Å, on {first.neighbors_of:,} structures a split at most; "
        f"{100 * beyond:.0f}% of atoms have more than the {limit} that the main graph keeps"
    )
    figure = histogram(edges, series, label="neighbours per atom", whole_numbers=True, mark=(limit, f"{limit} kept"))
    return Chart("Neighbours per atom", note, figure)


def _energies(splits: Sequence[SplitStatistics]) -> Chart | None:
    return _values("Energy, as published", "eV", [split.energy for split in splits], splits)


def _referenced(splits: Sequence[SplitStatistics]) -> Chart | None:
    with_reference = [split for split in splits if len(split.referenced)]
    if not with_reference:
        return None
    values = with_reference[0].referenced
    note = (
        f"minus element references {with_reference[0].reference}; {with_reference[0].name}: std {values.std():.4g} eV"
    )
    return _values("Energy, referenced", "eV", [split.referenced for split in splits], splits, note)


def _target(splits: Sequence[SplitStatistics], name: str) -> Chart | None:
    values = [split.targets.get(name, np.zeros(0)) for split in splits]
    entry = splits[0].dataset.schema[name]
    level = "per atom" if entry.level == "atom" else entry.kind
    note = "; ".join(text for text in (entry.description, level) if text)
    return _values(name, entry.unit, values, splits, note)


def _values(
    title: str, unit: str, values: Sequence[Values], splits: Sequence[SplitStatistics], note: str | None = None
) -> Chart | None:
    present = [(i, v) for i, v in enumerate(values) if len(v)]
    if not present:
        return None
    edges = value_edges([v for _, v in present])
    series = [Series(splits[i].name, _color(i), np.histogram(v, edges)[0], len(v)) for i, v in present]
    _, first = present[0]
    if note is None:
        note = f"{splits[present[0][0]].name}: {plain(float(first.min()))} to {plain(float(first.max()))} {unit}"
    beyond = sum(one.total - int(one.counts.sum()) for one in series)
    if beyond:
        note += f"; {beyond:,} beyond the axis"
    label = f"{title}, {unit}" if unit else title
    shown = f"{title} ({unit})" if unit else title
    return Chart(shown, note, histogram(edges, series, label=label))


def _forces(splits: Sequence[SplitStatistics]) -> Chart | None:
    totals = [int(split.force_norms.sum()) + split.weak_forces + split.strong_forces for split in splits]
    if not any(totals):
        return None
    used = np.flatnonzero(sum((split.force_norms for split in splits), np.zeros(len(FORCE_EDGES) - 1, np.int64)))
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    low, high = 10 * (low // 10), min(10 * -(-high // 10), len(FORCE_EDGES) - 1)
    series = [
        Series(split.name, _color(i), split.force_norms[low:high], totals[i])
        for i, split in enumerate(splits)
        if totals[i]
    ]
    note = "one value an atom, logarithmic axis"
    weak = sum(split.weak_forces for split in splits) / sum(totals)
    if weak:
        note += f"; {100 * weak:.2g}% below {plain(float(FORCE_EDGES[low]))} or zero"
    figure = histogram(FORCE_EDGES[low : high + 1], series, label="force norm, eV/Å", logarithmic=True)
    return Chart("Force on an atom (eV/Å)", note, figure)
