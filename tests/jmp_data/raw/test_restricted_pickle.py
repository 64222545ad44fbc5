"""Records of every generation decode to what was pickled; nothing in them runs, imports or takes unbounded memory."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import sys
import tracemalloc
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmp_data.errors import RawFileError, UnsafePickleError
from jmp_data.raw.pickle_templates import TemplateCache, compile_template
from jmp_data.raw.restricted_pickle import load_record, load_value
from tests.jmp_data.raw.pickled_records import (
    OLD_ATTRIBUTES,
    binary,
    dump_before_pyg2,
    dump_since_pyg2,
    named,
    record_attributes,
    short_text,
)
from tests.shared import SHARED, needs_shared

WHERE = "a.lmdb: record 3"
MEBIBYTE = 1 << 20

_watched: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event.split(".")[0] in {
        "import",
        "exec",
        "os",
        "subprocess",
        "open",
        "compile",
        "socket",
        "pickle",
        "code",
    }:
        _watched.append(f"{event}{arguments!r:.80}")


sys.addaudithook(_watch)


def load_watched(payload: bytes):
    """Loads a record while the interpreter reports every import, execution, open file and unpickled class."""
    global _watching
    _watched.clear()
    _watching = True
    try:
        return load_record(payload, where=WHERE)
    finally:
        _watching = False
        assert _watched == []


def assert_same(got, expected):
    if isinstance(expected, torch.Tensor):
        expected = expected.numpy()
    if isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        assert got.flags.owndata
        assert got.flags.aligned
    else:
        assert type(got) is type(expected)
        assert got == expected


def assert_records_same(got, expected):
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert_same(got[name], value)


class TestRealRecords:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("dump", [dump_before_pyg2, dump_since_pyg2])
    @pytest.mark.parametrize("num_atoms", [1, 80, 300, 70000])
    def test_every_generation_of_data_objects(self, dump, protocol, num_atoms):
        attributes = record_attributes(num_atoms)
        got = load_watched(dump(attributes, protocol))
        if dump is dump_since_pyg2:  # it does not store what is None
            attributes = {name: value for name, value in attributes.items() if value is not None}
            got = {name: got[name] for name in attributes}
        assert_records_same(got, attributes)

    def test_plain_dictionaries(self):
        attributes = record_attributes(5)
        assert_records_same(load_watched(pickle.dumps(attributes)), attributes)
        assert_records_same(load_watched(pickle.dumps(collections.OrderedDict(attributes))), attributes)

    def test_a_record_written_opcode_by_opcode_as_torch_1_did(self):
        """An independent reading of the format: nothing here comes from the installed torch or PyG."""
        raw = struct.pack("<3f", 1.5, -2.0, 3.25)
        stream = (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
            b"\x80\x02M\xe9\x03."
            b"\x80\x02}q\x00(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88"
            b"X\n\x00\x00\x00type_sizesq\x03}q\x04(X\x05\x00\x00\x00shortq\x05K\x02X\x03\x00\x00\x00intq\x06K\x04"
            b"X\x04\x00\x00\x00longq\x07K\x04uu."
            b"\x80\x02(X\x07\x00\x00\x00storageq\x00ctorch\nFloatStorage\nq\x01X\x03\x00\x00\x00123q\x02"
            b"X\x03\x00\x00\x00cpuq\x03K\x03Ntq\x04Q."
            b"\x80\x02]q\x00X\x03\x00\x00\x00123q\x01a." + struct.pack("<q", 3) + raw
        )
        tensor = (
            named("torch._utils", "_rebuild_tensor_v2")
            + b"("
            + named("torch.storage", "_load_from_bytes")
            + binary(stream)
            + b"\x85RK\x00K\x01K\x03\x86K\x03K\x01\x86\x89"
            + named("collections", "OrderedDict")
            + b")RtR"
        )
        state = b"}(" + short_text("pos") + tensor + short_text("y") + b"G" + struct.pack(">d", -7.5) + b"u"
        got = load_watched(b"\x80\x04" + named("torch_geometric.data.data", "Data") + b")\x81" + state + b"b.")
        assert got["y"] == -7.5
        assert_same(got["pos"], np.array([[1.5, -2.0, 3.25]], dtype=np.float32))

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.arange(12.0).reshape(3, 4).T,
            torch.arange(12.0).reshape(3, 4)[1:, ::2],
            torch.ones(1).expand(7, 3),
            torch.tensor(5),
            torch.zeros(0, 3),
            torch.tensor([True, False]),
            *(torch.arange(5).to(dtype) for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)),
            *(torch.arange(5).to(dtype) for dtype in (torch.float16, torch.float32, torch.float64)),
        ],
        ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.dtype}",
    )
    def test_tensors_of_every_layout_and_type(self, tensor):
        for protocol in (2, 4):
            assert_same(load_watched(pickle.dumps({"t": tensor}, protocol))["t"], tensor)

    def test_tensors_that_share_a_storage_become_independent_arrays(self):
        base = torch.arange(6.0)
        got = load_watched(pickle.dumps({"a": base, "b": base[2:5]}))
        assert_same(got["b"], base[2:5])
        got["a"][:] = 0
        assert_same(got["b"], base[2:5])

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_numpy_values(self, protocol):
        record = {
            "y": np.float64(-3.5),
            "sid": np.int64(7),
            "flag": np.bool_(True),
            "big_endian": np.arange(3, dtype=">f4"),
            "matrix": np.arange(12.0).reshape(3, 4),
            "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
            "names": np.array(["Cu", "Zn"]),
            "site": ((np.float64(1.0), np.float64(2.0)),),
        }
        assert_records_same(load_watched(pickle.dumps(record, protocol)), record)

    def test_the_numpy_1_spelling_of_module_names(self):
        payload = pickle.dumps({"y": np.float64(-3.5)}, 2)
        assert b"numpy._core.multiarray" in payload or b"numpy.core.multiarray" in payload
        old = payload.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert load_watched(old)["y"] == -3.5

    def test_sizes_types_devices_and_nested_values(self):
        record = {"size": torch.Size([2, 3]), "ids": [1, ["a", (2, None)]], "n": {3: "x"}, "neg": -5, "big": 1 << 70}
        assert load_watched(pickle.dumps(record)) == {**record, "size": (2, 3)}
        got = load_watched(pickle.dumps({"dtype": torch.float32, "device": torch.device("cuda:1")}))
        assert got == {"dtype": np.dtype("float32"), "device": "cuda:1"}

    def test_plain_values_such_as_length(self):
        assert load_value(pickle.dumps(17), where=WHERE) == 17


@cache
def small_payload() -> bytes:
    """Made once, so that all examples draw from the same bytes."""
    attributes = {name: value for name, value in record_attributes(3).items() if name not in OLD_ATTRIBUTES[1:]}
    return dump_before_pyg2(attributes)


class TestTemplates:
    """The fast path reads exactly what the machine reads."""

    def test_records_of_one_file_share_one_template(self):
        cache = TemplateCache()
        first = dump_before_pyg2(record_attributes(80, 0))
        cache.learn(first, WHERE)
        for seed, num_atoms in enumerate([80, 23, 255, 256, 700], 1):
            attributes = record_attributes(num_atoms, seed)
            got = cache.decode(dump_before_pyg2(attributes), WHERE)
            assert got is not None
            assert_records_same(got, attributes)

    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_what_a_template_accepts_is_what_the_machine_reads(self, data):
        payload = bytearray(small_payload())
        template = compile_template(bytes(payload), WHERE)
        for _ in range(data.draw(st.integers(1, 3))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        cache = TemplateCache()
        cache._templates = [template]
        mutated = bytes(payload)
        try:
            fast = cache.decode(mutated, WHERE)
        except (RawFileError, ValueError):
            with pytest.raises(RawFileError, match="record"):
                load_value(mutated, where=WHERE)
            return
        if fast is not None:
            assert repr(load_value(mutated, where=WHERE)) == repr(fast)

    def test_a_text_that_is_also_a_name_stays_literal(self):
        """``id`` is stored once and used as a key too; another id must not read as the old key."""

        def payload(text: str) -> bytes:
            return b"\x80\x04}(" + short_text("id") + short_text(text) + b"\x94h\x00K\x07u."

        assert load_record(payload("abc"), where=WHERE) == {"id": "abc", "abc": 7}
        assert load_record(payload("xyz"), where=WHERE) == {"id": "xyz", "xyz": 7}

    def test_a_text_that_is_also_a_module_name_stays_literal(self):
        def payload(text: str) -> bytes:
            name = b"\x94h\x00" + short_text("OrderedDict") + b"\x93)R"
            return (
                b"\x80\x04}(" + short_text("id") + short_text(text) + b"\x94" + name[1:] + short_text("k") + b"K\x01u."
            )

        with pytest.raises(RawFileError):
            load_record(payload("collections"), where=WHERE)
        with pytest.raises(UnsafePickleError):
            load_record(payload("collectionz"), where=WHERE)

    def test_records_that_never_repeat_stop_being_compiled(self):
        cache = TemplateCache(max_compilations=3)
        for size in range(6):
            cache.learn(pickle.dumps({f"name{size}": 1}), WHERE)
        assert len(cache._templates) == 3


CALLS = {
    "os.system": b"\x80\x04" + named("os", "system") + b"\x8c\x04true\x85R.",
    "posix.system in protocol 2": b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "subprocess": b"\x80\x04" + named("subprocess", "Popen") + b"\x8c\x04true\x85R.",
    "eval": b"\x80\x04" + named("builtins", "eval") + b"\x8c\x0211\x85R.",
    "exec": b"\x80\x04" + named("builtins", "exec") + b"\x8c\x0211\x85R.",
    "getattr": b"\x80\x04" + named("builtins", "getattr") + b"N\x8c\x01a\x86R.",
    "python 2 builtins": b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
    "operator": b"\x80\x04" + named("operator", "attrgetter") + b"\x8c\x01a\x85R.",
    "partial": b"\x80\x04" + named("functools", "partial") + b")R.",
    "codecs": b"\x80\x04" + named("codecs", "decode") + b"C\x01a\x8c\x04zlib\x86R.",
    "torch.load": b"\x80\x04" + named("torch", "load") + b"\x8c\x01a\x85R.",
    "torch.serialization.load": b"\x80\x04" + named("torch.serialization", "load") + b"\x8c\x01a\x85R.",
    "numpy.load": b"\x80\x04" + named("numpy", "load") + b"\x8c\x01a\x85R.",
    "numpy.testing": b"\x80\x04" + named("numpy.testing._private.utils", "runstring") + b")R.",
    "dotted way out of a listed class": b"\x80\x04" + named("collections", "OrderedDict.__init__.__globals__") + b".",
    "dotted module": b"\x80\x04" + named("torch._utils._rebuild_tensor_v2.__globals__", "os") + b".",
    "submodule of torch": b"\x80\x04" + named("torch", "_utils._rebuild_tensor_v2") + b".",
    "pymatgen": b"\x80\x04" + named("pymatgen.core.structure", "Structure") + b")\x81.",
    "getattr through copyreg": b"\x80\x04" + named("copyreg", "__newobj__") + b")R.",
    "instance of a listed function": b"\x80\x04" + named("torch._utils", "_rebuild_tensor_v2") + b")\x81.",
    "call of a class that is only listed for objects": b"\x80\x04"
    + named("torch_geometric.data.data", "Data")
    + b")R.",
    "call of text": b"\x80\x04\x8c\x01a)R.",
    "call of a made object": b"\x80\x04" + named("torch_geometric.data.data", "Data") + b")\x81)R.",
    "state for a listed class": b"\x80\x04" + named("torch_geometric.data.data", "Data") + b"}\x8c\x01ah\x00sb.",
    "state for a listed function": b"\x80\x04" + named("collections", "OrderedDict") + b"}\x8c\x01aK\x01sb.",
    "state for a dictionary": b"\x80\x04}}b.",
    "extension registry": b"\x80\x04\x82\x01.",
    "wide extension": b"\x80\x04\x84\x01\x00\x00\x00.",
    "INST": b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.",
    "OBJ of a listed class": b"\x80\x02(ccollections\nOrderedDict\no.",
    "keyword arguments": b"\x80\x04" + named("torch_geometric.data.data", "Data") + b")}\x92.",
    "persistent id": b"\x80\x04\x8c\x01a\x85Q.",
    "text persistent id": b"Pabc\n.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "sets": b"\x80\x04\x8f(K\x01\x90.",
    "DUP": b"\x80\x04}2\x86.",
}


class _Payload:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def _inner_stream(object_pickle: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.zeros(1).untyped_storage(), buffer, _use_new_zipfile_serialization=False)
    head = buffer.getvalue()
    start = head.index(b"\x80\x02(X\x07\x00\x00\x00storage")
    return head[:start] + object_pickle + head[head.index(b"\x80\x02]q\x00") :]


class TestHostilePickles:
    @pytest.mark.parametrize("payload", CALLS.values(), ids=CALLS.keys())
    def test_calls_and_foreign_classes_are_refused(self, payload):
        with pytest.raises(RawFileError, match=r"a\.lmdb: record 3") as caught:
            load_watched(payload)
        if b"Data" not in payload and b"\x8c\x01a)R" not in payload:
            assert isinstance(caught.value, UnsafePickleError)

    def test_the_message_names_what_was_asked_for(self):
        with pytest.raises(UnsafePickleError, match=r"asks for os\.system.*nothing was executed"):
            load_record(CALLS["os.system"], where=WHERE)

    @pytest.mark.parametrize("wrap", [lambda v: {"pos": v}, lambda v: [v], lambda v: {"a": [({"b": v},)]}])
    def test_reduce_hidden_deep_inside(self, wrap, tmp_path):
        target = tmp_path / "created"
        for function in (eval, exec, __import__, open):
            with pytest.raises(UnsafePickleError):
                load_watched(pickle.dumps(wrap(_Payload(function, str(target)))))
        assert not target.exists()

    def test_inside_the_stream_of_a_storage(self):
        for inner in (CALLS["posix.system in protocol 2"], CALLS["eval"], CALLS["INST"]):
            payload = (
                b"\x80\x04" + named("torch.storage", "_load_from_bytes") + binary(_inner_stream(inner)) + b"\x85R."
            )
            with pytest.raises(UnsafePickleError):
                load_watched(b"\x80\x04}\x8c\x01t" + payload[2:-1] + b"s.")

    def test_a_storage_stream_may_not_name_what_a_record_may(self):
        inner = b"\x80\x04" + named("torch_geometric.data.data", "Data") + b")\x81."
        call = named("torch.storage", "_load_from_bytes") + binary(_inner_stream(inner)) + b"\x85R"
        with pytest.raises(UnsafePickleError):
            load_watched(b"\x80\x04}\x8c\x01t" + call + b"s.")

    @needs_shared
    def test_a_foreign_lmdb_is_refused(self):
        from jmp_data.raw.lmdb_records import open_lmdb

        with open_lmdb(SHARED / "samples" / "pickled_lmdb" / "matsciml_alexandria_devset_data_000.lmdb") as records:
            for key in records.keys[:20]:
                with pytest.raises(UnsafePickleError, match="numpy"):
                    load_watched(records.read(int(key)))

    def test_state_cannot_be_smuggled_from_one_record_to_the_next(self):
        good = dump_since_pyg2(record_attributes(4))
        before = load_record(good, where=WHERE)
        for payload in CALLS.values():
            with pytest.raises(RawFileError):
                load_record(payload, where=WHERE)
        assert repr(load_record(good, where=WHERE)) == repr(before)


def _tensor_call(stream: bytes, shape: bytes, strides: bytes) -> bytes:
    storage = named("torch.storage", "_load_from_bytes") + binary(stream) + b"\x85R"
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\x00" + shape + strides + b"\x89NtR"


def _storage_stream(values: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(values._typed_storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _doubling(levels: int, opener: bytes, closer: bytes) -> bytes:
    body = b"\x80\x04" + opener + b"K\x01" + closer + b"\x94"
    for level in range(levels):
        body += opener + b"h" + bytes([level]) + b"h" + bytes([level]) + closer + b"\x94"
    return b"\x80\x04}\x8c\x01a" + body[2:] + b"s."


ONE = _storage_stream(torch.zeros(1))
BOMBS = {
    "memo index": b"\x80\x04}r\xff\xff\xff\x7fj\xff\xff\xff\x7f.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "short of bytes": b"\x80\x04B" + struct.pack("<I", (1 << 32) - 1) + b".",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",
    "integer": b"\x80\x04\x8b" + struct.pack("<i", 1 << 30) + b".",
    "negative integer": b"\x80\x04\x8b" + struct.pack("<i", -1) + b".",
    "nested tuples": b"\x80\x04}\x8c\x01a" + b"(" * 200_000 + b"t" * 200_000 + b"s.",
    "nested lists": b"\x80\x04}\x8c\x01a" + b"](" * 100_000 + b"e" * 100_000 + b"s.",
    "nested tuple as key": b"\x80\x04}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    "doubling tuples": _doubling(200, b"(", b"t"),
    "doubling lists": _doubling(200, b"](", b"e"),
    "cycle": b"\x80\x04}\x94\x8c\x01ah\x00s.",
    "expanded tensor": b"\x80\x04}\x8c\x01a" + _tensor_call(ONE, b"J\xff\xff\xff\x7f\x85", b"K\x00\x85") + b"s.",
    "many expanded tensors": b"\x80\x04](" + _tensor_call(ONE, b"M\xff\xff\x85", b"K\x00\x85") * 500 + b"e.",
    "tensor beyond its storage": b"\x80\x04}\x8c\x01a" + _tensor_call(ONE, b"K\x02\x85", b"K\x01\x85") + b"s.",
    "negative stride": b"\x80\x04}\x8c\x01a" + _tensor_call(ONE, b"K\x02\x85", b"J\xff\xff\xff\xff\x85") + b"s.",
    "negative size": b"\x80\x04}\x8c\x01a" + _tensor_call(ONE, b"J\xff\xff\xff\xff\x85", b"K\x01\x85") + b"s.",
    "huge size of nothing": b"\x80\x04}\x8c\x01a"
    + _tensor_call(ONE, b"K\x00\x8a\x08" + b"\xff" * 7 + b"\x3f\x86", b"K\x01K\x01\x86")
    + b"s.",
    "numpy item of a gigabyte": b"\x80\x04" + named("numpy", "dtype") + b"\x8c\x0bS1000000000\x89\x88\x87R.",
    "ends too early": b"\x80\x04}(",
    "empty": b"",
    "no object": b"\x80\x04.",
    "protocol 9": b"\x80\x09N.",
    "opcode that does not exist": b"\x80\x04\xff.",
    "trailing bytes": pickle.dumps({"a": 1}) + b"x",
    "text protocol": pickle.dumps({"a": 1}, 0),
    "not a record": pickle.dumps([1, 2]),
    "keys that are no names": pickle.dumps({1: 2}),
    "class as a value": b"\x80\x04}\x8c\x01a" + named("collections", "OrderedDict") + b"s.",
}


class TestBombsAndDamage:
    @pytest.mark.parametrize("payload", BOMBS.values(), ids=BOMBS.keys())
    def test_memory_stays_proportional_to_the_payload(self, payload):
        tracemalloc.start()
        try:
            with pytest.raises(RawFileError, match=r"a\.lmdb: record 3"):
                load_watched(payload)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 * MEBIBYTE + 200 * len(payload)

    def test_every_truncation_is_noticed(self):
        payload = dump_before_pyg2(record_attributes(2))
        load_record(payload, where=WHERE)
        for stop in range(len(payload)):
            with pytest.raises(RawFileError):
                load_record(payload[:stop], where=WHERE)

    @given(st.data())
    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_mutated_records_decode_or_raise(self, data):
        dump = data.draw(st.sampled_from([dump_before_pyg2, dump_since_pyg2, pickle.dumps]))
        payload = bytearray(dump(record_attributes(2)))
        for _ in range(data.draw(st.integers(1, 8))):
            place = data.draw(st.integers(0, len(payload) - 1))
            change = data.draw(st.binary(min_size=1, max_size=6))
            payload[place : place + data.draw(st.integers(0, 6))] = change
        try:
            got = load_watched(bytes(payload))
        except RawFileError:
            return
        assert all(isinstance(name, str) for name in got)

    @given(
        st.lists(
            st.one_of(
                st.sampled_from(
                    [bytes([code]) for code in b"(.012)]}NRQabceiloPstu2q\x01h\x00K\x01\x81\x85\x86\x87\x88\x93\x94"]
                ),
                st.sampled_from([named("os", "system"), named("collections", "OrderedDict"), named("numpy", "dtype")]),
                st.sampled_from(
                    [named("torch_geometric.data.data", "Data"), named("torch.storage", "_load_from_bytes")]
                ),
                st.sampled_from([named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray")]),
                st.sampled_from(
                    [named("torch._utils", "_rebuild_tensor_v2"), named("torch.storage", "UntypedStorage")]
                ),
                st.binary(min_size=1, max_size=3),
                st.text("abf4<>", max_size=3).map(short_text),
                st.binary(max_size=12).map(binary),
            ),
            max_size=40,
        )
    )
    @settings(max_examples=1500, deadline=None)
    def test_random_programs_do_nothing(self, opcodes):
        payload = b"\x80\x04" + b"".join(opcodes) + b"."
        tracemalloc.start()
        try:
            load_watched(payload)
        except RawFileError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2 * MEBIBYTE
