"""`jmp-data bench`: how fast data sets stream on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .console import print_facts, print_json


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(bench)


def bench(
    places: Annotated[list[str], typer.Argument(metavar="DIR...", help="Data sets, as for mix: folders or URLs.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Structures of a batch.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes of the loader; 0 reads in this one.")] = 0,
    graphs: Annotated[bool, typer.Option("--graphs", help="With the four graphs of GemNet-OC on each batch.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure, after a warm-up of half of it.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast data sets stream here: shuffled, ready batches, nothing done with them.

    Example: jmp-data bench shards/ani1x --workers 4 --graphs
    """
    from jmp_data.mixture import Mixture
    from jmp_data.mixture.places import open_places
    from jmp_data.stream import StreamLoader
    from jmp_data.stream.measure import measure_stream

    mixture = Mixture.from_datasets(open_places(places))
    loader = StreamLoader(mixture, batch_size, num_workers=workers, graphs="auto" if graphs else None)
    setup = {
        "datasets": {member.name: str(member.dataset.path) for member in mixture},
        "structures": mixture.num_structures,
        "batch_size": batch_size,
        "workers": workers,
        "graphs": graphs,
    }
    found = measure_stream(loader, seconds=seconds)
    loader.close()
    if as_json:
        print_json({**setup, **found})
    else:
        print_facts(_shown(setup, found))


def _shown(setup: dict[str, Any], found: dict[str, Any]) -> dict[str, object]:
    rates = {
        f"{name} per second": f"{found[f'{name}_per_second']:,.0f}"
        for name in ("structures", "atoms", "batches", "edges")
    }
    if not setup["graphs"]:
        del rates["edges per second"]
    return {
        "data sets": ", ".join(setup["datasets"]),
        "structures": f"{setup['structures']:,}",
        **rates,
        "first batch after": f"{found['first_batch_seconds']:.2f} s",
        "processors used": f"{found['processors_used']:.2f}",
        "memory": f"{found['memory_bytes'] / 1e6:,.0f} MB",
    }
