"""Archives extract whole or not at all, and nothing they hold reaches beyond the target."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.raw import safe_archive
from jmp_data.raw.safe_archive import ArchiveLimits, extract, iter_members

FILES = {
    "set/train/0.extxyz.xz": random.Random(0).randbytes(70_000),
    "set/train/0.txt.xz": random.Random(1).randbytes(700),
    "set/val/1.extxyz.xz": b"",
    "README": b"about\n" * 200,
}
KINDS = ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"]


def regular(name: str, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = linkname
    return info


def write_tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    mode = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
    entries = [(special("set", tarfile.DIRTYPE), b""), *((regular(name), data) for name, data in files.items())]
    return write_tar(path, entries, mode)


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".extracted" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def assert_refused(archive: Path, match: str, **options):
    target = archive.parent / "target"
    before = {path: path.stat().st_mtime_ns for path in archive.parent.rglob("*") if "target" not in path.parts}
    with pytest.raises(RawFileError, match=match) as caught:
        extract(archive, target, **options)
    assert str(archive) in str(caught.value)
    assert contents(target) == {}
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert {path for path in archive.parent.rglob("*") if "target" not in path.parts} == set(before)


class TestHonestArchives:
    @pytest.mark.parametrize("kind", KINDS)
    def test_everything_comes_out_as_it_went_in(self, tmp_path, kind):
        archive = write_archive(tmp_path / f"a.{kind}", FILES)
        paths = extract(archive, tmp_path / "target")
        assert paths == [tmp_path / "target" / name for name in FILES]
        assert contents(tmp_path / "target") == FILES

    @pytest.mark.parametrize("kind", KINDS)
    def test_members_can_be_read_without_extracting(self, tmp_path, kind):
        archive = write_archive(tmp_path / f"a.{kind}", FILES)
        got = {member.name: stream.read() for member, stream in iter_members(archive)}
        assert got == FILES
        assert [path.name for path in tmp_path.iterdir()] == [archive.name]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_filter_picks_members(self, tmp_path, kind):
        archive = write_archive(tmp_path / f"a.{kind}", FILES)
        paths = extract(archive, tmp_path / "target", members=lambda name: name.endswith(".txt.xz"))
        assert [path.name for path in paths] == ["0.txt.xz"]
        assert len(extract(archive, tmp_path / "target")) == len(FILES)

    def test_the_kind_is_recognised_by_content(self, tmp_path):
        archive = write_archive(tmp_path / "a.tar.xz", FILES).rename(tmp_path / "download")
        extract(archive, tmp_path / "target")
        assert contents(tmp_path / "target") == FILES

    def test_names_that_begin_with_a_dot_component(self, tmp_path):
        entries = [(special("./", tarfile.DIRTYPE), b""), (regular("./a/b.lmdb"), b"x")]
        extract(write_tar(tmp_path / "a.tar", entries), tmp_path / "target")
        assert contents(tmp_path / "target") == {"a/b.lmdb": b"x"}

    @pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_every_dialect_of_tar(self, tmp_path, format_):
        name = f"{'d' * 90}/{'f' * 90}.xyz"
        with tarfile.open(tmp_path / "a.tar", "w", format=format_) as tar:
            tar.addfile(regular(name, 3), io.BytesIO(b"abc"))
        extract(tmp_path / "a.tar", tmp_path / "target")
        assert contents(tmp_path / "target") == {name: b"abc"}

    @pytest.mark.parametrize(
        ("kind", "linkname"),
        [(tarfile.SYMTYPE, "../x/data"), (tarfile.LNKTYPE, "x/data"), (tarfile.SYMTYPE, "../y/../x/data")],
    )
    def test_links_to_members_become_files(self, tmp_path, kind, linkname):
        entries = [(regular("x/data"), b"abc"), (special("y/again", kind, linkname), b"")]
        extract(write_tar(tmp_path / "a.tar", entries), tmp_path / "target")
        assert contents(tmp_path / "target") == {"x/data": b"abc", "y/again": b"abc"}
        assert not (tmp_path / "target" / "y" / "again").is_symlink()

    def test_extracting_again_goes_by_the_receipt(self, tmp_path, monkeypatch):
        archive = write_archive(tmp_path / "a.tar.gz", FILES)
        first = extract(archive, tmp_path / "target")
        monkeypatch.setattr(safe_archive, "iter_members", None)
        assert extract(archive, tmp_path / "target") == first

    def test_a_lost_file_or_a_new_archive_is_extracted_again(self, tmp_path):
        archive = write_archive(tmp_path / "a.tar.gz", FILES)
        extract(archive, tmp_path / "target")
        (tmp_path / "target" / "README").unlink()
        extract(archive, tmp_path / "target")
        assert contents(tmp_path / "target") == FILES
        write_archive(archive, {**FILES, "more": b"!"})
        extract(archive, tmp_path / "target")
        assert contents(tmp_path / "target") == {**FILES, "more": b"!"}

    def test_two_archives_share_folders(self, tmp_path):
        extract(write_archive(tmp_path / "a.tar", {"set/a": b"1"}), tmp_path / "target")
        extract(write_archive(tmp_path / "b.zip", {"set/b": b"2"}), tmp_path / "target")
        assert contents(tmp_path / "target") == {"set/a": b"1", "set/b": b"2"}

    def test_modes_and_owners_are_not_taken_over(self, tmp_path):
        info = regular("tool")
        info.mode, info.uid = 0o6777, 0
        extract(write_tar(tmp_path / "a.tar", [(info, b"x")]), tmp_path / "target")
        assert (tmp_path / "target" / "tool").stat().st_mode & 0o7111 == 0


class TestHostileTars:
    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "../x", "a/../../x", "a/..", "C:\\x", "a\\..\\x", "C:x", "//host/x"]
    )
    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_paths_that_lead_outside(self, tmp_path, name, kind):
        assert_refused(write_archive(tmp_path / f"a.{kind}", {"good": b"1", name: b"2"}), "would leave the folder")

    @pytest.mark.parametrize(
        ("kind", "linkname", "match"),
        [
            (tarfile.SYMTYPE, "/etc/passwd", "would leave"),
            (tarfile.SYMTYPE, "../../etc/passwd", "would leave"),
            (tarfile.SYMTYPE, "..", "would leave|not inside"),
            (tarfile.SYMTYPE, ".", "not inside"),
            (tarfile.SYMTYPE, "absent", "not inside"),
            (tarfile.LNKTYPE, "/etc/passwd", "would leave"),
            (tarfile.LNKTYPE, "../x", "would leave"),
            (tarfile.LNKTYPE, "absent", "not inside"),
        ],
    )
    def test_links_that_lead_outside(self, tmp_path, kind, linkname, match):
        entries = [(regular("a/good"), b"1"), (special("a/link", kind, linkname), b"")]
        assert_refused(write_tar(tmp_path / "a.tar", entries), match)

    def test_writing_through_a_link(self, tmp_path):
        entries = [
            (regular("d/good"), b"1"),
            (special("link", tarfile.SYMTYPE, "d"), b""),
            (regular("link/evil"), b"2"),
        ]
        assert_refused(write_tar(tmp_path / "a.tar", entries), "not inside")

    def test_writing_through_a_link_that_is_already_there(self, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "d").symlink_to(outside)
        with pytest.raises(RawFileError, match="no folder"):
            extract(write_archive(tmp_path / "a.tar", {"d/x": b"1"}), tmp_path / "target")
        assert list(outside.iterdir()) == []

    @pytest.mark.parametrize(
        "kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z", tarfile.GNUTYPE_SPARSE]
    )
    def test_devices_pipes_and_oddities(self, tmp_path, kind):
        archive = write_tar(tmp_path / "a.tar", [(regular("good"), b"1"), (special("odd", kind), b"")])
        if kind == tarfile.CONTTYPE:  # by the standard a regular file
            assert len(extract(archive, tmp_path / "target")) == 2
        else:
            assert_refused(archive, "no plain file|damaged")

    @pytest.mark.parametrize("kind", ["tar", "zip"])
    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_doubled_names(self, tmp_path, kind):
        archive = tmp_path / f"a.{kind}"
        if kind == "tar":
            write_tar(archive, [(regular("a"), b"1"), (regular("./a"), b"2")])
        else:
            with zipfile.ZipFile(archive, "w") as opened:
                opened.writestr("a", b"1")
                opened.writestr("a", b"2")
        assert_refused(archive, "two members are called a")

    def test_a_file_that_is_also_a_folder(self, tmp_path):
        assert_refused(write_archive(tmp_path / "a.tar", {"a": b"1", "a/b": b"2"}), "cannot be extracted")

    def test_reserved_names(self, tmp_path):
        assert_refused(write_archive(tmp_path / "a.tar", {".extracted/a.tar.json": b"{}"}), "reserved")

    def test_nothing_is_overwritten(self, tmp_path):
        target = tmp_path / "target"
        target.mkdir()
        (target / "README").write_bytes(b"mine")
        with pytest.raises(RawFileError, match=r"README differs from .* which is there already"):
            extract(write_archive(tmp_path / "a.tar", FILES), target)
        assert contents(target) == {"README": b"mine"}

    def test_a_folder_in_the_way_of_a_file_and_the_reverse(self, tmp_path):
        target = tmp_path / "target"
        (target / "README").mkdir(parents=True)
        with pytest.raises(RawFileError, match="README"):
            extract(write_archive(tmp_path / "a.tar", FILES), target)
        (target / "README").rmdir()
        (target / "set").write_bytes(b"mine")
        with pytest.raises(RawFileError, match="no folder"):
            extract(write_archive(tmp_path / "a.tar", FILES), target)
        assert contents(target) == {"set": b"mine"}

    def test_an_extended_header_of_gigabytes(self, tmp_path):
        archive = tmp_path / "a.tar"
        for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            info = special("x", kind)
            info.size = 1 << 33
            archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
            assert_refused(archive, "declares 8589934592 bytes")


class TestHostileZips:
    def test_links(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            info = zipfile.ZipInfo("link")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
        assert_refused(tmp_path / "a.zip", "link or a device")

    def test_encrypted_members(self, tmp_path):
        raw = bytearray(write_archive(tmp_path / "a.zip", {"a": b"1"}).read_bytes())
        raw[raw.index(b"PK\x01\x02") + 8] |= 1
        (tmp_path / "a.zip").write_bytes(raw)
        assert_refused(tmp_path / "a.zip", "encrypted")

    def test_a_size_that_is_not_true(self, tmp_path):
        raw = bytearray(write_archive(tmp_path / "a.zip", {"a": b"1" * 1000}).read_bytes())
        start = raw.index(b"PK\x01\x02") + 24
        raw[start : start + 4] = (10).to_bytes(4, "little")
        (tmp_path / "a.zip").write_bytes(raw)
        assert_refused(tmp_path / "a.zip", "damaged archive")


class TestBombs:
    @pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
    def test_a_small_archive_that_unfolds_far(self, tmp_path, kind):
        archive = write_archive(tmp_path / f"a.{kind}", {"zeros": bytes(20 << 20)})
        assert_refused(archive, "decompression bomb", limits=ArchiveLimits(free_bytes=1 << 20))
        assert len(extract(archive, tmp_path / "target")) == 1  # small enough in absolute terms by default

    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_too_many_members(self, tmp_path, kind):
        archive = write_archive(tmp_path / f"a.{kind}", {f"{n}": b"" for n in range(30)})
        assert_refused(archive, "29 members", limits=ArchiveLimits(members=29))
        assert len(extract(archive, tmp_path / "target", limits=ArchiveLimits(members=30))) == 30

    def test_more_bytes_than_any_data_set_has(self, tmp_path):
        archive = write_archive(tmp_path / "a.tar", FILES)
        assert_refused(archive, "more than 50000 bytes", limits=ArchiveLimits(total_bytes=50_000))

    def test_a_header_may_declare_any_size(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(regular("huge", 1 << 50).tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
        assert_refused(tmp_path / "a.tar", "decompression bomb")


class TestDamage:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_truncation_is_noticed(self, tmp_path, kind):
        archive = write_archive(tmp_path / f"a.{kind}", FILES)
        whole = archive.read_bytes()
        end = len(whole)
        if kind == "tar":  # tar pads with more zeros than the one end marker needs
            end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
        stops = sorted({*range(0, end, max(1, end // 40)), *range(0, end, 512), *range(end - 10, end)})
        for stop in stops:
            archive.write_bytes(whole[:stop])
            with pytest.raises(RawFileError):
                extract(archive, tmp_path / "target")
            assert contents(tmp_path / "target") == {}
        archive.write_bytes(whole)
        extract(archive, tmp_path / "target")

    @pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
    def test_flipped_bytes_never_give_other_content(self, tmp_path, kind):
        archive = write_archive(tmp_path / f"a.{kind}", FILES)
        whole = archive.read_bytes()
        chooser = random.Random(0)
        refused = 0
        for number in range(120):
            damaged = bytearray(whole)
            damaged[chooser.randrange(len(damaged))] ^= 1 << chooser.randrange(8)
            archive.write_bytes(damaged)
            target = tmp_path / f"target{number}"
            try:
                extract(archive, target)
            except RawFileError:
                refused += 1
                assert contents(target) == {}
            else:
                assert set(contents(target).values()) == set(FILES.values())
        assert refused > 80

    def test_a_damaged_header_is_not_the_end(self, tmp_path):
        archive = write_archive(tmp_path / "a.tar", FILES)
        raw = bytearray(archive.read_bytes())
        raw[raw.index(b"set/val") + 3] ^= 1
        archive.write_bytes(raw)
        assert_refused(archive, "header cannot be read")

    def test_a_second_archive_behind_the_end_marker(self, tmp_path):
        archive = write_archive(tmp_path / "a.tar", FILES)
        archive.write_bytes(archive.read_bytes() * 2)
        assert_refused(archive, "follows the end marker")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x1f\x8b nothing", b"text" * 1000, bytes(20)])
    def test_what_is_no_archive(self, tmp_path, content):
        (tmp_path / "a.tar").write_bytes(content)
        assert_refused(tmp_path / "a.tar", "damaged archive")

    def test_a_missing_archive(self, tmp_path):
        with pytest.raises(MissingFileError, match=r"absent\.tar"):
            list(iter_members(tmp_path / "absent.tar"))


def _extract_and_die(archive: str, target: str, after: int) -> None:
    seen: list[object] = []

    def die(member: object) -> None:
        seen.append(member)
        if len(seen) > after:
            os._exit(9)

    extract(Path(archive), Path(target), progress=die)


class TestInterruption:
    @pytest.mark.parametrize("after", range(len(FILES)))
    def test_a_killed_extraction_leaves_nothing_and_can_be_repeated(self, tmp_path, after):
        archive = write_archive(tmp_path / "a.tar.gz", FILES)
        child = multiprocessing.get_context("fork").Process(
            target=_extract_and_die, args=(str(archive), str(tmp_path / "target"), after)
        )
        child.start()
        child.join(30)
        assert child.exitcode == 9
        assert contents(tmp_path / "target") == {}
        extract(archive, tmp_path / "target")
        assert contents(tmp_path / "target") == FILES
        assert not (tmp_path / "target" / ".extracted" / "a.tar.gz.staging").exists()

    def test_an_interruption_between_renames_is_finished_later(self, tmp_path, monkeypatch):
        archive = write_archive(tmp_path / "a.tar.gz", {f"{n}": bytes([n]) for n in range(6)})
        target = tmp_path / "target"
        replace: Callable[..., object] = Path.replace
        renamed: list[Path] = []

        def fail_later(self: Path, other: Path) -> object:
            renamed.append(self)
            if len(renamed) == 4:
                raise OSError("power failure")
            return replace(self, other)

        monkeypatch.setattr(Path, "replace", fail_later)
        with pytest.raises(RawFileError, match="power failure"):
            extract(archive, target)
        assert 0 < len(contents(target)) < 6
        assert not (target / ".extracted" / "a.tar.gz.json").exists()
        monkeypatch.undo()
        extract(archive, target)
        assert contents(target) == {f"{n}": bytes([n]) for n in range(6)}

    def test_two_processes_take_turns(self, tmp_path):
        archive = write_archive(tmp_path / "a.tar.xz", FILES)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=extract, args=(archive, tmp_path / "target")) for _ in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        assert [child.exitcode for child in children] == [0, 0, 0]
        assert contents(tmp_path / "target") == FILES
