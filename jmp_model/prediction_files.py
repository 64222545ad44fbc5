"""Files that predictions are written to: the formats of ASE that keep every number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ase.io import write
from ase.io.formats import UnknownFileTypeError, filetype

from jmp_data.errors import ManifestError, MissingFileError

if TYPE_CHECKING:
    from ase import Atoms

_WHOLE = ("extxyz", "traj")
"""Formats that keep energies, forces, stresses and whatever else `Atoms.info` holds."""
_DATABASES = ("db", "json")
"""Formats that keep the same once `Atoms.info` is handed over apart."""
_ADVICE = "try .extxyz, .traj or .db"


def check_target(target: Path) -> str:
    """Find out before the work, not after it, that the result cannot be written.

    Returns:
        ASE's name of the format.

    Raises:
        ManifestError: it exists already, or its format is unknown or has no place for predictions.
        MissingFileError: its folder does not exist.
    """
    if target.exists():
        raise ManifestError(f"{target}: exists already; choose another name")
    if not target.parent.is_dir():
        raise MissingFileError(f"{target.parent}: no such folder")
    try:
        kind: str = filetype(str(target), read=False)
    except UnknownFileTypeError as error:
        raise ManifestError(f"{target}: its name tells no format; {_ADVICE}") from error
    # A database has no compressed form.
    if kind not in _WHOLE and not (kind in _DATABASES and target.suffix == f".{kind}"):
        raise ManifestError(f"{target}: format {kind} has no place for energies and forces; {_ADVICE}")
    return kind


def write_predictions(target: Path, frames: Sequence[Atoms]) -> None:
    """Write structures with what their calculators hold; the file appears whole or not at all.

    Raises:
        ManifestError: see `check_target`, or ASE cannot write them.
    """
    kind = check_target(target)
    partial = target.with_name(f".partial-{target.name}")
    try:
        if kind in _DATABASES:
            _write_database(partial, kind, frames)
        else:
            write(partial, frames, format=kind)
        partial.replace(target)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ManifestError(f"{target}: ASE cannot write it ({type(error).__name__}: {error}); {_ADVICE}") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_database(path: Path, kind: str, frames: Sequence[Atoms]) -> None:
    from ase.db import connect

    with connect(path, type=kind, serial=True, append=False) as database:
        for atoms in frames:
            database.write(atoms, data=atoms.info)
