"""`jmp-data mix`: data sets and how much of each → mixture file, or a look at what its epochs will be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from jmp_data.errors import ManifestError

from .console import out, print_facts, print_json, print_table

if TYPE_CHECKING:
    from jmp_data.mixture import Mixture, Subset

Value = TypeVar("Value")


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(mix)


def mix(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]DIR...",
            help="Data sets: folders or URLs. A folder with splits means train, a folder of data sets all of them.",
        ),
    ],
    temperature: Annotated[
        float | None, typer.Option(min=1e-3, help="1 samples by size, 2 (default) is the paper's choice.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X,...", help="Share of each in an epoch, instead.")
    ] = None,
    repeats: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X,...", help="Visits of each structure per epoch, instead.")
    ] = None,
    first: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]N", help="Only the first N structures; of all, or of NAME.")
    ] = None,
    fraction: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]X", help="Only this share, spread evenly; of all, or of NAME.")
    ] = None,
    elements: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]H,C,...", help="Only structures of these elements; of all, or of NAME."),
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="Structures to leave out: exclude.yaml of jmp-data overlap.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Mixture file to write (mix.yaml; none with --simulate).")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Show what an epoch will be like; reads no structures.")
    ] = False,
    ranks: Annotated[int, typer.Option("--ranks", "--world-size", min=1, help="Simulate: processes that train.")] = 1,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Simulate: structures per rank and step (32).")] = None,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Simulate: atoms per rank and step.")] = None,
    max_edges: Annotated[int | None, typer.Option(min=1, help="Simulate: edges per rank and step.")] = None,
    seed: Annotated[int, typer.Option(help="Of --fraction and --simulate.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Mix data sets by temperature, weights or repeats; prints what one epoch holds.

    Example: jmp-data mix shards/oc20/train shards/ani1x/train --temperature 2 --out mix.yaml

    Example: jmp-data mix shards/oc20 small=shards/ani1x --weights oc20=3,small=1 --first small=10000

    Example: jmp-data mix shards --simulate --ranks 64 --batch-size 8
    """
    from jmp_data.mixture import Mixture
    from jmp_data.mixture.places import open_places

    if not simulate and (ranks > 1 or batch_size or max_atoms or max_edges):
        raise ManifestError("--ranks, --batch-size, --max-atoms and --max-edges belong to --simulate")
    datasets = open_places(places)
    names = list(datasets)
    if exclude is not None:
        from jmp_data.overlap import check_exclusions

        check_exclusions(exclude, datasets)
    mixture = Mixture.from_datasets(
        datasets,
        temperature=temperature,
        weights=_by_name("--weights", weights, names, _positive),
        repeats=_by_name("--repeats", repeats, names, _positive),
        subsets=_subsets(names, first, fraction, elements, seed),
        exclusions=exclude,
    )
    target = output if output is not None or simulate else Path("mix.yaml")
    if target is not None:
        mixture.save(target)
    report: dict[str, Any] = {
        "mixture": None if target is None else str(target),
        "temperature": mixture.rule.temperature,
        "epoch_size": mixture.epoch_size,
        "datasets": mixture.table(),
    }
    if simulate:
        from jmp_data.stream import BatchLimits
        from jmp_data.stream import simulate as simulate_epoch

        report["simulation"] = simulate_epoch(mixture, BatchLimits(batch_size, max_atoms, max_edges, ranks), seed=seed)
    if as_json:
        print_json(report)
    else:
        _print_report(mixture, report)


def _by_name(
    option: str,
    texts: Sequence[str] | None,
    names: Sequence[str],
    convert: Callable[[str], Value],
    *,
    separator: str = ",",
) -> dict[str, Value] | None:
    """`a=1,b=2` → {a: 1, b: 2}; a value without a name is that of every data set that is not named."""
    if not texts:
        return None
    found: dict[str, Value] = {}
    rest: dict[str, Value] = {}
    for entry in (part for text in texts for part in (text.split(separator) if separator else [text])):
        name, equals, value = entry.rpartition("=")
        if equals and name not in names:
            raise ManifestError(f"{option} {entry}: the mixture has no data set {name}; it holds {', '.join(names)}")
        if name in found or (not equals and rest):
            raise ManifestError(f"{option} {entry}: given twice")
        try:
            value_for = convert(value.strip())
        except (ValueError, KeyError):
            raise ManifestError(f"{option} {entry}: {value!r} is not what this option takes; see --help") from None
        if equals:
            found[name] = value_for
        else:
            rest = dict.fromkeys(names, value_for)
    return {**rest, **found}


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


def _elements(text: str) -> frozenset[int]:
    from ase.data import atomic_numbers

    return frozenset(atomic_numbers[symbol.strip()] for symbol in text.split(","))


def _subsets(
    names: Iterable[str],
    first: Sequence[str] | None,
    fraction: Sequence[str] | None,
    elements: Sequence[str] | None,
    seed: int,
) -> dict[str, Subset]:
    from jmp_data.mixture import Subset

    listed = list(names)
    firsts = _by_name("--first", first, listed, _count) or {}
    fractions = _by_name("--fraction", fraction, listed, _share) or {}
    allowed = _by_name("--elements", elements, listed, _elements, separator="") or {}
    return {
        name: Subset(first=firsts.get(name), fraction=fractions.get(name), seed=seed, elements=allowed.get(name))
        for name in listed
        if name in firsts or name in fractions or name in allowed
    }


def _print_report(mixture: Mixture, report: dict[str, Any]) -> None:
    rows = [
        [
            row["dataset"],
            f"{row['structures']:,}",
            f"{row['share']:.4f}",
            f"{row['probability']:.4f}",
            f"{row['repeats']:.4f}",
            f"{row['samples']:,}",
        ]
        for row in report["datasets"]
    ]
    rule = mixture.rule
    how = "by weights" if rule.weights else "by repeats" if rule.repeats else f"at T = {rule.temperature:g}"
    columns = ["data set", "structures", "share", "probability", "repeats", "structures an epoch"]
    print_table(f"Mixture {how}", columns, rows)
    if "simulation" in report:
        _print_simulation(report["simulation"])
    written = "" if report["mixture"] is None else f"; written to {report['mixture']}"
    out.print(f"one epoch: {mixture.epoch_size:,} structures{written}", markup=False)


def _print_simulation(found: dict[str, Any]) -> None:
    def spread(values: dict[str, float]) -> str:
        return f"{values['smallest']:,.0f} to {values['largest']:,.0f}, {values['mean']:,.1f} on average"

    limits = {name.replace("global_", ""): value for name, value in found.items() if name.startswith("global_")}
    uneven = found["imbalance"]
    alone = found["oversized_share"]
    print_facts(
        {
            "ranks": found["world_size"],
            "a step of all ranks": ", ".join(f"{name} {value:,}" for name, value in limits.items()),
            "steps an epoch": f"{found['steps']:,}" + ("" if found["steps_are_exact"] else " (estimated)"),
            "structures an epoch": f"{found['structures']:,}",
            "atoms an epoch": f"{found['atoms']:,}",
            "structures of a rank in a step": spread(found["structures_per_rank"]),
            "atoms of a rank in a step": spread(found["atoms_per_rank"]),
            "heaviest rank over the mean": f"{uneven['mean']:.3f} on average, {uneven['largest']:.3f} at worst",
            **({"larger than a rank's budget": f"{alone:.4%}; each gets a rank to itself"} if alone else {}),
        }
    )
