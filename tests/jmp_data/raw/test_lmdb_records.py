"""LMDB files read as the LMDB library reads them, in numeric order; damaged ones give an error, never a crash."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.errors import MissingFileError, RawFileError, UnsafePickleError
from jmp_data.raw.lmdb_records import open_lmdb
from tests.jmp_data.raw.pickled_records import named


def write_lmdb(path: Path, items: dict[str, bytes], *, per_commit: int = 1, delete: tuple[str, ...] = ()) -> Path:
    """Writes as the OCP scripts do: one commit a record, no sub-directory."""
    environment = lmdb.open(str(path), map_size=1 << 30, subdir=False, meminit=False, map_async=True)
    keys = list(items)
    for start in range(0, len(keys), per_commit):
        with environment.begin(write=True) as transaction:
            for key in keys[start : start + per_commit]:
                transaction.put(key.encode(), items[key])
    with environment.begin(write=True) as transaction:
        for key in delete:
            transaction.delete(key.encode())
    environment.sync()
    environment.close()
    return path


def numbered(count: int, size: int = 40) -> dict[str, bytes]:
    return {str(number): bytes([number % 256]) * (size + number % 7) for number in range(count)}


def with_length(count: int, size: int = 40) -> dict[str, bytes]:
    return {**numbered(count, size), "length": pickle.dumps(count)}


def test_records_come_in_numeric_order_and_length_is_not_one_of_them(tmp_path):
    with open_lmdb(write_lmdb(tmp_path / "data.0000.lmdb", with_length(123))) as records:
        assert len(records) == 123
        assert [key for key, _ in records.records()] == list(range(123))
        assert dict(records.records()) == {int(key): value for key, value in numbered(123).items()}
        np.testing.assert_array_equal(records.keys, np.arange(123))


def test_ranges_cover_every_record_once(tmp_path):
    with open_lmdb(write_lmdb(tmp_path / "a.lmdb", with_length(50))) as records:
        keys = [key for start in range(0, 60, 7) for key, _ in records.records(start, start + 7)]
        assert keys == list(range(50))
        assert list(records.records(50)) == []


@pytest.mark.parametrize("per_commit", [1, 100])
@pytest.mark.parametrize("size", [10, 3000, 9000])
def test_small_large_and_overflowing_values(tmp_path, size, per_commit):
    items = with_length(300, size)
    path = write_lmdb(tmp_path / "a.lmdb", items, per_commit=per_commit)
    with open_lmdb(path) as records:
        assert all(items[str(key)] == value for key, value in records.records())
        assert len(records) == 300


@given(
    st.dictionaries(st.integers(0, 400).map(str), st.integers(0, 6000), min_size=1, max_size=60),
    st.integers(1, 20),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_the_lmdb_library_reads_the_same(tmp_path_factory, sizes, per_commit, data):
    items = {key: random.Random(key).randbytes(size) for key, size in sizes.items()}
    deleted = tuple(data.draw(st.lists(st.sampled_from(sorted(items)), unique=True)))
    path = write_lmdb(tmp_path_factory.mktemp("l") / "a.lmdb", items, per_commit=per_commit, delete=deleted)
    environment = lmdb.open(str(path), readonly=True, lock=False, subdir=False)
    with environment.begin() as transaction:
        expected = {key.decode(): bytes(value) for key, value in transaction.cursor()}
    environment.close()
    with open_lmdb(path) as records:
        assert {str(key): records.read(int(key)) for key in records.keys} == expected


def test_a_directory_with_data_mdb_opens_too(tmp_path):
    environment = lmdb.open(str(tmp_path / "set"), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        transaction.put(b"0", b"value")
    environment.close()
    with open_lmdb(tmp_path / "set") as records:
        assert list(records.records()) == [(0, b"value")]


def test_keys_from_one_and_named_values_as_ase_writes_them(tmp_path):
    items = {"1": b"a", "2": b"b", "4": b"d", "nextid": b"5", "metadata": b"{}", "deleted_ids": b"[3]"}
    with open_lmdb(write_lmdb(tmp_path / "a.aselmdb", items)) as records:
        np.testing.assert_array_equal(records.keys, [1, 2, 4])
        assert sorted(records.named) == ["deleted_ids", "metadata", "nextid"]
        assert records.read_named("metadata") == b"{}"
        assert records.read_named("absent") is None


def test_an_empty_file_has_no_records(tmp_path):
    with open_lmdb(write_lmdb(tmp_path / "a.lmdb", {})) as records:
        assert len(records) == 0
        assert list(records.records()) == []


def test_one_file_may_be_open_several_times_and_nothing_is_written_beside_it(tmp_path):
    path = write_lmdb(tmp_path / "a.lmdb", numbered(3))
    (tmp_path / "a.lmdb-lock").unlink(missing_ok=True)
    path.chmod(0o444)
    with open_lmdb(path) as first, open_lmdb(path) as second:
        assert first.read(2) == second.read(2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.lmdb"]


def test_a_missing_record_is_named_and_the_rest_still_reads(tmp_path):
    path = write_lmdb(tmp_path / "data.0007.lmdb", with_length(20), delete=("13",))
    with open_lmdb(path) as records:
        assert len(records) == 20
        assert len(list(records.records(0, 13))) == 13
        with pytest.raises(RawFileError, match=r"data\.0007\.lmdb: record 13 is missing"):
            list(records.records())
        assert len(list(records.records(14))) == 6


def test_records_lost_at_the_end_are_noticed_through_length(tmp_path):
    path = write_lmdb(tmp_path / "a.lmdb", with_length(20), delete=("19",))
    with open_lmdb(path) as records, pytest.raises(RawFileError, match="record 19 is missing"):
        list(records.records())


def test_a_length_that_nothing_backs_is_refused(tmp_path):
    items = {**numbered(3), "length": pickle.dumps(10**12)}
    with pytest.raises(RawFileError, match="holds only 3 of"):
        open_lmdb(write_lmdb(tmp_path / "a.lmdb", items))


def test_a_hostile_length_is_refused(tmp_path):
    items = {**numbered(3), "length": b"\x80\x04" + named("os", "system") + b"\x8c\x04true\x85R."}
    with pytest.raises(UnsafePickleError, match=r"a\.lmdb: key length: the pickle asks for os\.system"):
        open_lmdb(write_lmdb(tmp_path / "a.lmdb", items))


def test_a_length_that_is_no_count_is_refused(tmp_path):
    items = {**numbered(3), "length": pickle.dumps("three")}
    with pytest.raises(RawFileError, match="key length"):
        open_lmdb(write_lmdb(tmp_path / "a.lmdb", items))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.lmdb"):
        open_lmdb(tmp_path / "nowhere.lmdb")
    for content in (b"", b"x" * 10, b"x" * 100_000, b"\0" * 8192):
        (tmp_path / "other.lmdb").write_bytes(content)
        with pytest.raises(RawFileError, match=r"other\.lmdb"):
            open_lmdb(tmp_path / "other.lmdb")


def read_all(path: Path) -> dict[int, bytes]:
    with open_lmdb(path) as records:
        return dict(records.records())


def test_a_truncated_file_is_noticed_wherever_it_ends(tmp_path):
    path = write_lmdb(tmp_path / "a.lmdb", with_length(60, 3000))
    whole = path.read_bytes()
    expected = read_all(path)
    noticed = 0
    for stop in range(0, len(whole), len(whole) // 150):
        path.write_bytes(whole[:stop])
        try:
            got = read_all(path)
        except RawFileError:
            noticed += 1
        else:
            assert got == expected  # only unused pages were cut off
    assert noticed > 140


def test_flipped_bytes_in_index_pages_never_crash_the_process(tmp_path):
    """The LMDB library dies of SIGBUS on some of these."""
    path = write_lmdb(tmp_path / "a.lmdb", with_length(200, 3000))
    whole = path.read_bytes()
    expected = read_all(path)
    index_pages = [page for page in range(len(whole) // 4096) if whole[page * 4096 + 10] in (1, 2, 8)]
    chooser = random.Random(0)
    noticed = 0
    for _ in range(600):
        damaged = bytearray(whole)
        place = chooser.choice(index_pages) * 4096 + chooser.randrange(300)
        damaged[place] ^= chooser.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            got = read_all(path)
        except RawFileError:
            noticed += 1
        else:
            assert len(got) == len(expected)
    assert noticed > 50
