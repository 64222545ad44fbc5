"""Write stored structures to any file format that ASE writes; the file appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jmp_data.errors import ManifestError
from jmp_data.shards.dataset import ShardDataset


def export_structures(
    dataset: ShardDataset, rows: Sequence[int], target: Path, progress: Callable[[int], None] = lambda count: None
) -> None:
    """Export structures.

    Args:
        dataset: where from.
        rows: structure indices, in the order wanted.
        target: file to write; its name decides the format.
        progress: called with the number of structures converted since the last call.

    Raises:
        ManifestError: ASE has no writer for that name, or the file exists.
    """
    from ase.io import write
    from ase.io.formats import UnknownFileTypeError

    if target.exists():
        raise ManifestError(f"{target}: exists already; choose another name")
    temporary = target.with_name(f".partial-{target.name}")
    atoms = []
    for row in rows:
        atoms.append(dataset[row].to_ase())
        progress(1)
    try:
        write(temporary, atoms)
        temporary.replace(target)
    except UnknownFileTypeError as error:
        raise ManifestError(f"{target}: ASE writes no such format ({error}); try .extxyz, .traj or .db") from error
    finally:
        temporary.unlink(missing_ok=True)
