"""Which reader a file needs: told by its first bytes where they say it, by its name otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.own_data.ase_db import AseDatabase, is_ase_json, is_sqlite
from jmp_data.own_data.ase_lmdb import AseLmdb
from jmp_data.own_data.ase_readable import AseReadable, Trajectory, ase_format
from jmp_data.own_data.cif_folder import CifFile
from jmp_data.own_data.extxyz import SUFFIXES as XYZ_SUFFIXES
from jmp_data.own_data.extxyz import ExtXyz
from jmp_data.own_data.grouped_hdf5 import GroupedHdf5
from jmp_data.own_data.mace_hdf5 import MaceHdf5, is_mace
from jmp_data.own_data.ocp_lmdb import OcpLmdb
from jmp_data.own_data.records import Reader
from jmp_data.own_data.xyz_frames import PACKED
from jmp_data.raw.lmdb_records import open_lmdb
from jmp_data.sources.hdf5_frames import open_hdf5

Format = Literal["extxyz", "traj", "ase", "ase_db", "ase_lmdb", "ocp_lmdb", "mace_hdf5", "grouped_hdf5", "cif"]

_READERS: tuple[Reader, ...] = (
    ExtXyz(),
    Trajectory(),
    AseReadable(),
    AseDatabase(),
    AseLmdb(),
    OcpLmdb(),
    MaceHdf5(),
    GroupedHdf5(),
    CifFile(),
)
READERS: Mapping[str, Reader] = MappingProxyType({reader.format: reader for reader in _READERS})
"""Format → its reader."""

_START = 4096
_HDF5_MAGIC, _ULM_MAGIC, _LMDB_MAGIC = b"\x89HDF", b"- of Ulm", b"\xde\xc0\xef\xbe"
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_ZLIB_START, _PICKLE_START = b"\x78", b"\x80"


def find_format(path: Path) -> Format:
    """The format of a file.

    Raises:
        MissingFileError: there is no such file.
        RawFileError: no reader takes it; the message says which formats there are.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        raise RawFileError(f"{path}: is empty")
    return _by_content(path, start) or _by_name(path, start)


def _by_content(path: Path, start: bytes) -> Format | None:
    if start.startswith(_ULM_MAGIC):
        return "traj"
    if is_sqlite(start):
        return "ase_db"
    if start.startswith(_HDF5_MAGIC):
        with open_hdf5(path) as file:
            return "mace_hdf5" if is_mace(file) else "grouped_hdf5"
    if start[16:20] == _LMDB_MAGIC:
        return _lmdb_kind(path)
    return None


def _by_name(path: Path, start: bytes) -> Format:
    suffix = path.suffix.lower()
    plain = Path(path.stem).suffix.lower() if suffix in PACKED else suffix
    if plain in XYZ_SUFFIXES:
        return "extxyz"
    if plain == ".cif":
        return "cif"
    if suffix == ".json" and is_ase_json(start):
        return "ase_db"
    if suffix in _PICKLES or start.startswith(_PICKLE_START):
        raise RawFileError(f"{path}: is a pickle, and reading one runs code; export it to extxyz where you trust it")
    if ase_format(path):
        return "ase"
    raise RawFileError(
        f"{path}: format not recognised; readable are extxyz, ASE trajectories, databases and whatever else ASE reads, "
        ".aselmdb, OCP LMDB, MACE and grouped HDF5, CIF"
    )


def _lmdb_kind(path: Path) -> Format:
    with open_lmdb(path) as records:
        if len(records.keys) == 0:
            raise RawFileError(f"{path}: LMDB file without records")
        first = records.read(int(records.keys[0]))
    if first.startswith(_ZLIB_START):
        return "ase_lmdb"
    if first.startswith(_PICKLE_START):
        return "ocp_lmdb"
    raise RawFileError(
        f"{path}: record {records.keys[0]} is neither compressed JSON (.aselmdb) nor a pickled structure (OCP)"
    )
