"""What is read, what becomes a record, and what is refused; `torch.load` and `pickle` are the oracles for the first."""

from __future__ import annotations

import collections
import contextlib
import datetime
import fractions
import os
import pathlib
import pickle
import pickletools
import subprocess
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import RawFileError, UnsafePickleError
from jmp_model.weights.inert_pickle import Foreign, InertUnpickler, Name
from tests.jmp_model.weights.released_files import Attributes, Callback, FitLoop, Stage


def read(payload: bytes) -> Any:
    def no_storage(key: object) -> object:
        raise ValueError("no storage here")

    return InertUnpickler(payload, "somewhere", load_storage=no_storage, makers={}).load()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=12,
)


@given(value=plain, protocol=st.sampled_from([2, 3, 4, 5]))
def test_plain_data_are_what_pickle_makes_of_them(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_shared_parts_stay_shared(protocol: int) -> None:
    inner = [1, 2]
    found = read(pickle.dumps([inner, inner], protocol))
    assert found[0] is found[1]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_known_containers_become_dictionaries(protocol: int) -> None:
    ordered = collections.OrderedDict(a=1)
    ordered.note = "attribute"  # type: ignore[attr-defined]
    value = [ordered, collections.defaultdict(list, {"b": [2]}), collections.Counter("aab")]
    assert read(pickle.dumps(value, protocol)) == [{"a": 1}, {"b": [2]}, {"a": 2, "b": 1}]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        FitLoop(3),
        Stage.TRAIN,
        Attributes(a=1),
        pathlib.PurePosixPath("/a"),
        datetime.datetime(2024, 1, 1),
        fractions.Fraction(1, 3),
        np.float64(3.0),
        np.arange(3),
        collections.deque([1, 2]),
        range(4),
        slice(1, 2),
        "text".upper,
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_become_records_of_themselves(value: object, protocol: int) -> None:
    found = read(pickle.dumps({"object": value, "after": 1}, protocol))
    # Python 3.11.0 to 3.11.3 store members of an enumeration by their name alone.
    assert isinstance(found["object"], (Foreign, Name) if isinstance(value, Stage) else Foreign)
    assert found["after"] == 1


def test_a_record_holds_what_the_object_held() -> None:
    found = read(pickle.dumps([Attributes(a=1), collections.deque([1, 2]), FitLoop(3)], 2))
    assert found[0].entries == {"a": 1}
    assert found[1].items == [1, 2]
    assert found[2].state == (None, {"epoch": 3, "owner": None})
    assert str(found[2].kind) == "tests.jmp_model.weights.released_files.FitLoop"


def test_nested_classes_keep_their_names() -> None:
    for protocol in (2, 4):
        assert read(pickle.dumps(Callback.State, protocol)).name == "Callback.State"


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, exec, __import__, subprocess.check_output, os.remove, open])
def test_calls_that_no_data_need_stop_the_reading(function: Any, protocol: int) -> None:
    payload = pickle.dumps({"weights": 1, "trap": [Hostile(function, "touch trap")]}, protocol)
    with pytest.raises(UnsafePickleError, match=r"somewhere: the file calls .*nothing was executed"):
        read(payload)


def touch(path: str) -> None:
    pathlib.Path(path).write_text("executed")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_functions_of_other_packages_are_not_called(tmp_path: pathlib.Path, protocol: int) -> None:
    trap = tmp_path / "trap"
    found = read(pickle.dumps(Hostile(touch, str(trap)), protocol))
    assert isinstance(found, Foreign)
    assert not trap.exists()


def test_results_of_calls_are_not_called() -> None:
    payload = pickle.dumps(Hostile(touch, "x"), 2)[:-1] + b")R."
    with pytest.raises(UnsafePickleError, match="result of a call"):
        read(payload)


def test_state_is_set_on_records_only() -> None:
    with pytest.raises(UnsafePickleError, match="sets the state of a Name"):
        read(b"\x80\x02ctests\nThing\n}X\x01\x00\x00\x00aK\x01sb.")


def test_deep_keys_are_refused() -> None:
    # Hashing a tuple of this depth overflows the stack of the interpreter.
    deep = b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
    with pytest.raises(RawFileError, match="nested tuple"):
        read(deep)


def test_large_memo_numbers_cost_nothing() -> None:
    assert read(b"\x80\x02K\x07r\xff\xff\xff\x7f.") == 7


@pytest.mark.parametrize(
    "payload", [b"\x80\x02X\xff\xff\xff\x7fabc.", b"\x80\x02B\xff\xff\xff\xffabc.", b"\x80\x02\x8b\xff\xff\xff\x7f."]
)
def test_declared_lengths_are_checked_before_memory_is_taken(payload: bytes) -> None:
    with pytest.raises(RawFileError, match=r"declares|integer of"):
        read(payload)


@given(data=st.data())
def test_damaged_pickles_end_in_our_errors(data: st.DataObject) -> None:
    payload = bytearray(pickle.dumps({"a": [1, 2.5, "x", (None, True)], "b": Attributes(c=1)}, 2))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RawFileError):
        read(bytes(payload[: data.draw(st.integers(0, len(payload)))]))


def test_all_opcodes_of_the_protocols_in_use_are_known() -> None:
    """What `pickle.dumps` can write with protocols 2 to 5, apart from what needs helpers outside of the stream."""
    from jmp_model.weights.inert_pickle import _HANDLERS

    written = {op.code.encode("latin1") for op in pickletools.opcodes if op.proto >= 1}
    outside = {b"\x82", b"\x83", b"\x84", b"\x97", b"\x98", b"o"}
    assert written - outside - {b"."} <= _HANDLERS.keys()
