"""Reads tar and zip archives member by member, and refuses what no published data set contains.

Tar archives are read as streams, in one pass and without seeking, whatever their compression. Python's ``tarfile``
takes a damaged header for the end of the archive; here an archive is complete only when an end marker follows its last
member and nothing but zeros follows that, and when the compressed stream itself ends as it should.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from jmp_data.errors import MissingFileError, RawFileError

_BLOCK = 1 << 20
_TAR_BUFFER = 1 << 16
_MAX_EXTENDED_HEADER = 1 << 20
_EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_READABLE_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    gzip.BadGzipFile,
    NotImplementedError,
    UnicodeDecodeError,
)

MemberFilter = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How far an archive may unfold before it counts as a bomb.

    Attributes:
        total_bytes: size of all members together; the largest published archive unfolds to about 1.1 TB.
        ratio: size of all members over the size of the archive; coordinates as text reach 10.
        free_bytes: unfolded size below which the ratio does not matter.
        members: number of members.
    """

    total_bytes: int = 4 << 40
    ratio: float = 100.0
    free_bytes: int = 64 << 20
    members: int = 10_000_000

    def allowed_bytes(self, archive_size: int) -> int:
        """The size to which an archive of ``archive_size`` bytes may unfold."""
        return min(self.total_bytes, max(self.free_bytes, int(self.ratio * archive_size)))


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """One member of an archive.

    Attributes:
        name: path with forward slashes, relative and free of ``..``.
        size: bytes; 0 for links.
        link_target: name of the earlier member that this one is a link to; None for files.
    """

    name: str
    size: int
    link_target: str | None = None


def iter_members(
    archive: Path, *, members: MemberFilter | None = None, limits: ArchiveLimits | None = None
) -> Iterator[tuple[ArchiveMember, IO[bytes]]]:
    """Yields the files of an archive with a stream of their content, without writing anything.

    Args:
        archive: a tar archive, plain or compressed with gzip, bzip2 or xz, or a zip archive; recognised by content.
        members: picks members by name; everything by default.
        limits: on what may come out.

    Yields:
        Member and stream; the stream is valid until the next one is asked for. A link has an empty stream.

    Raises:
        RawFileError: the archive is damaged, truncated, a bomb, or holds an absolute path, a path with ``..``, a
            device, a pipe, a link that leaves the archive, or two members of one name. Checks of the end come with the
            last member.
    """
    limits = limits or ArchiveLimits()
    if not archive.is_file():
        raise MissingFileError(f"{archive}: no such archive")
    with _damage_named(archive), archive.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        read = _zip_members if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else _tar_members
        for member, stream in _checked(read(file, archive, head, limits), archive, members, limits):
            yield member, io.BufferedReader(_MemberStream(stream, archive), _BLOCK)


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    """Turns what the decompressors raise on damaged bytes into one error that names the archive."""
    try:
        yield
    except _DAMAGE as error:
        raise RawFileError(f"{archive}: damaged archive: {error}; get it again") from error
    except OSError as error:
        if isinstance(error, RawFileError) or error.errno is not None:
            raise
        raise RawFileError(f"{archive}: damaged archive: {error}; get it again") from error  # bz2 raises a bare OSError


class _MemberStream(io.RawIOBase):
    """The content of a member, whose damage shows only while it is read."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self._stream = stream
        self._archive = archive

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads into ``buffer``; raises RawFileError on damage."""
        with _damage_named(self._archive):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def safe_name(name: str, archive: Path) -> str:
    """Returns a member's name in normal form, or raises RawFileError where it leads outside of the archive."""
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":"
    if bad or not path.parts:
        raise RawFileError(f"{archive}: member {name!r} would leave the folder it is extracted to; nothing was written")
    return str(path)


def _checked(
    found: Iterator[tuple[ArchiveMember, IO[bytes]]], archive: Path, members: MemberFilter | None, limits: ArchiveLimits
) -> Iterator[tuple[ArchiveMember, IO[bytes]]]:
    """Counts members and bytes, refuses doubled names, and passes on what the filter picks."""
    allowed = limits.allowed_bytes(archive.stat().st_size)
    names: set[str] = set()
    total = 0
    for member, stream in found:
        total += member.size
        if total > allowed or len(names) >= limits.members:
            raise RawFileError(
                f"{archive}: unfolds to more than {allowed} bytes or {limits.members} members, as a decompression bomb "
                f"would; stopped at member {member.name}"
            )
        if member.name in names:
            raise RawFileError(f"{archive}: two members are called {member.name}")
        if member.link_target is not None and member.link_target not in names:
            raise RawFileError(
                f"{archive}: member {member.name} is a link to {member.link_target}, which is not inside"
            )
        names.add(member.name)
        if members is None or members(member.name):
            yield member, stream


class _CountingReader(io.RawIOBase):
    """Counts the unfolded bytes of a tar archive, and stops at a limit."""

    def __init__(self, stream: IO[bytes], archive: Path, allowed: int) -> None:
        self._stream = stream
        self._archive = archive
        self._allowed = allowed
        self.total = 0

    def read(self, size: int = -1) -> bytes:
        """Reads at most ``size`` bytes, at most a block where no size is given."""
        data = self._stream.read(_BLOCK if size is None or size < 0 else size)
        self.total += len(data)
        if self.total > self._allowed:
            raise RawFileError(
                f"{self._archive}: unfolds to more than {self._allowed} bytes, as a decompression bomb would"
            )
        return data


@contextmanager
def _decompressed(file: IO[bytes], head: bytes) -> Iterator[IO[bytes]]:
    """Opens the stream below a compression that is recognised by its first bytes."""
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(file) as stream:
            yield stream  # type: ignore[misc]
    elif head.startswith(b"BZh"):
        with bz2.open(file) as stream:
            yield stream
    elif head.startswith(b"\xfd7zXZ\x00"):
        with lzma.open(file) as stream:
            yield stream
    else:
        yield file


class _StrictInfo(tarfile.TarInfo):
    """A header reader that tells a damaged or missing header from the end of the archive, and bounds extended ones."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        """Reads the next header; only an end marker may end the archive."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header cannot be read ({error}), or the end marker is missing") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Reads one header block; long names and PAX records are read into memory, so they have to be short."""
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _EXTENDED_HEADERS and info.size > _MAX_EXTENDED_HEADER):
            raise tarfile.ReadError(f"a header declares {info.size} bytes")
        return info


def _tar_members(
    file: IO[bytes], archive: Path, head: bytes, limits: ArchiveLimits
) -> Iterator[tuple[ArchiveMember, IO[bytes]]]:
    allowed = limits.allowed_bytes(archive.stat().st_size)
    with _decompressed(file, head) as stream:
        # Headers and padding of small files come on top of what the members hold.
        reader = _CountingReader(stream, archive, 2 * allowed)
        with tarfile.open(fileobj=reader, mode="r|", bufsize=_TAR_BUFFER, tarinfo=_StrictInfo) as tar:
            while (info := tar.next()) is not None:
                member = _tar_member(info, archive)
                if member is not None:
                    content = tar.extractfile(info) if member.link_target is None else None
                    yield member, content or io.BytesIO()
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
            while tail := tar.fileobj.read(_BLOCK):
                if tail.strip(b"\0"):
                    raise RawFileError(f"{archive}: something follows the end marker of this archive; get it again")


def _tar_member(info: tarfile.TarInfo, archive: Path) -> ArchiveMember | None:
    """Returns the member; None for folders, which come into being with their files."""
    name = info.name if info.isdir() and info.name in (".", "./") else safe_name(info.name, archive)
    if info.isdir():
        return None
    if info.isreg() and not info.issparse():
        return ArchiveMember(name, info.size)
    if info.issym():
        return ArchiveMember(name, 0, _link_target(f"{PurePosixPath(name).parent}/{info.linkname}", info, archive))
    if info.islnk():
        return ArchiveMember(name, 0, _link_target(info.linkname, info, archive))
    raise RawFileError(f"{archive}: member {name} is no plain file (a device, a pipe, sparse, or unknown)")


def _link_target(path: str, info: tarfile.TarInfo, archive: Path) -> str:
    """Resolves a link by its text alone; the result must name an earlier file of the archive."""
    parts: list[str] = []
    for part in PurePosixPath(path).parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    if info.linkname.startswith("/"):
        parts = [info.linkname]
    return safe_name("/".join(parts) or "/", archive)


def _zip_members(
    file: IO[bytes], archive: Path, head: bytes, limits: ArchiveLimits
) -> Iterator[tuple[ArchiveMember, IO[bytes]]]:
    with zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            if info.is_dir():
                safe_name(info.filename, archive)
                continue
            name = safe_name(info.filename, archive)
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise RawFileError(f"{archive}: member {name} is a link or a device; nothing of it was written")
            if info.flag_bits & 1 or info.compress_type not in _READABLE_COMPRESSION:
                raise RawFileError(f"{archive}: member {name} is encrypted or compressed by an unknown method")
            with opened.open(info) as stream:
                yield ArchiveMember(name, info.file_size), stream
