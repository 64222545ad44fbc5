"""Arrays of `.npz` archives without pickles: shapes from headers alone, values on demand.

An archive may hold object arrays (strings written carelessly become such); they are pickles, so they are never loaded,
and only refused where their values are needed.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import MissingFileError, RawFileError

Array = npt.NDArray[Any]
_SUFFIX = ".npy"


class NpzArrays:
    """The arrays of one archive.

    Attributes:
        path: the archive.
        headers: array name → shape and dtype, read without unpacking the values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _archive(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(_SUFFIX)]
            self.headers = {name.removesuffix(_SUFFIX): _read_header(archive, name) for name in names}

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array.

        Raises:
            RawFileError: there is none of that name.
        """
        return self._header(name)[0]

    def load(self, name: str) -> Array:
        """All values of an array.

        Raises:
            RawFileError: there is none of that name, it is a pickle, or the archive is damaged.
        """
        if self._header(name)[1].hasobject:
            raise RawFileError(
                f"{self.path}: array {name} is a pickled object, which is not executed; get another copy"
            )
        with _archive(self.path) as archive, archive.open(name + _SUFFIX) as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array

    def text(self, name: str) -> str | None:
        """A string that was saved as text or bytes; None where there is none, or only a pickle."""
        if name not in self.headers or self.headers[name][1].kind not in "US":
            return None
        value = self.load(name)
        if value.size != 1:
            return None
        item = value.reshape(-1)[0]
        return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if name not in self.headers:
            raise RawFileError(f"{self.path}: has no array {name}; it has {', '.join(self.headers) or 'none'}")
        return self.headers[name]


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; it was there when the work was planned") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, OSError) as error:
        if isinstance(error, RawFileError):
            raise
        raise RawFileError(f"{path}: not a whole .npz archive ({error}); get the file again") from error


def _read_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(name) as file:
        return _parse_header(file)


def _parse_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return tuple(shape), dtype
