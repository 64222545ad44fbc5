from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.sources import json_elements
from jmp_data.sources.json_elements import list_elements, open_json, read_head

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\[]{}, é'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='k"\\]'), inner, max_size=3),
    max_leaves=8,
)
elements = st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3)


def read_list(path: Path, key: str) -> tuple[Any, list[Any]]:
    with open_json(path) as file:
        head, begun = read_head(file, key, path)
        return head, [json.loads(text) for text in list_elements(file, path, begun)]


@given(st.lists(elements, max_size=12), st.integers(1, 40), st.booleans())
def test_elements_come_out_whole_whatever_the_chunks(content: list[Any], chunk: int, compact: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_elements, "_CHUNK_BYTES", chunk)
        patch.setattr(json_elements, "_MAX_ELEMENTS", 3)
        path = Path(name) / "table.json.gz"
        separators = (",", ":") if compact else None
        table = {"index": list(range(len(content))), "data": content, "more": [1]}
        path.write_bytes(gzip.compress(json.dumps(table, separators=separators).encode()))
        head, found = read_list(path, "data")
        assert found == content
        assert json.loads(head + b'"data": []}')["index"] == table["index"]


def test_a_missing_key_and_truncated_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"rows": [[1], [2]]}')
    with pytest.raises(RawFileError, match=r"table\.json: has no list 'data'"):
        read_list(path, "data")
    path.write_text('{"data": [[1], [2, "]"')
    with pytest.raises(RawFileError, match="ends within its list"):
        read_list(path, "data")
    packed = tmp_path / "table.json.gz"
    whole = gzip.compress(json.dumps({"data": [[index] for index in range(5000)]}).encode())
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RawFileError, match="not a whole gzip file"):
        read_list(packed, "data")
    packed.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # a wrong check sum, seen only at the very end
    with pytest.raises(RawFileError, match="not a whole gzip file"):
        read_list(packed, "data")
    with pytest.raises(MissingFileError):
        read_list(tmp_path / "nothing.json", "data")
