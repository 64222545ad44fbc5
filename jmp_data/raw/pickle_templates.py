"""Decodes records that repeat: a template made from one record reads the next ones without interpreting their opcodes.

The records of one LMDB file are pickles of the same few hundred opcodes and differ only in numbers, in a text or two
and in the bytes of their tensors. :func:`compile_template` interprets one record with :class:`PickleMachine` while it
notes which bytes each resulting value came from. Those bytes become typed fields; *all* other bytes are literal and
must be equal in another record for the template to apply. A record that fits therefore means exactly what the machine
would have made of it, and what does not fit goes to the machine. This is several times as fast and adds nothing to
what is trusted.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jmp_data.raw.pickle_machine import PickleMachine
from jmp_data.raw.pickle_standins import ALLOWED, Budget, TensorSpec, build_tensor, record_attributes
from jmp_data.raw.torch_storages import read_storage

_MAX_LITERAL_BYTES = 1 << 14
_FRAME = 0x95
_INT32 = struct.Struct("<i")
_FLOAT64 = struct.Struct(">d")

# Opcodes of byte strings and texts that carry their length in front: size of that length, in bytes.
_SIZED = {ord("C"): 1, ord("B"): 4, 0x8E: 8, 0x8C: 1, ord("X"): 4}


class _IntLeaf(int):
    span: tuple[int, int]


class _FloatLeaf(float):
    span: tuple[int, int]


class _TextLeaf(str):
    span: tuple[int, int]


class _BytesLeaf(bytes):
    span: tuple[int, int]


_LEAVES: dict[type, type] = {int: _IntLeaf, float: _FloatLeaf, str: _TextLeaf, bytes: _BytesLeaf}


class _WatchedMemo(dict[int, Any]):
    """Notes the leaves that a pickle uses a second time: they may serve as a class name or dictionary key there."""

    def __init__(self) -> None:
        super().__init__()
        self.reused: set[tuple[int, int]] = set()

    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        if hasattr(value, "span"):
            self.reused.add(value.span)
        return value


@dataclass(frozen=True, slots=True)
class _Field:
    """One value of the record: which field of the payload it is read from, or the constant that it is."""

    index: int
    constant: Any = None


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the record; offset and strides are literal, as they do not depend on the number of atoms."""

    storage: _Field
    offset: int
    shape: tuple[_Field, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of payload that one regular expression matches, up to a sized field whose content follows it.

    Attributes:
        pattern: one group per field, the last one being the length of the sized field.
        decoders: how each group becomes a value.
        frames: numbers of the groups that hold the length of a pickle frame, which only needs to be in range.
        content: how the sized field's bytes become a value; None for the last piece.
    """

    pattern: re.Pattern[bytes]
    decoders: tuple[Callable[[bytes], Any], ...]
    frames: tuple[int, ...]
    content: Callable[[bytes], Any] | None


@dataclass(frozen=True, slots=True)
class RecordTemplate:
    """Reads every record that equals the one it was compiled from in all bytes outside the fields."""

    pieces: tuple[_Piece, ...]
    scalars: tuple[tuple[str, _Field], ...]
    tensors: tuple[tuple[str, _Tensor], ...]
    names: tuple[str, ...]

    def fields(self, payload: bytes) -> list[Any] | None:
        """Reads the fields of a payload, or returns None where it does not fit."""
        found: list[Any] = []
        position, end = 0, len(payload)
        for piece in self.pieces:
            match = piece.pattern.match(payload, position)
            if match is None:
                return None
            position = match.end()
            found += [decode(raw) for decode, raw in zip(piece.decoders, match.groups(), strict=True)]
            if any(match.end(number) + _length(match[number]) > end for number in piece.frames):
                return None
            if piece.content is not None:
                start, position = position, position + found.pop()
                if position > end:
                    return None
                try:
                    found.append(piece.content(payload[start:position]))
                except UnicodeDecodeError:
                    return None
        return found if position == end else None

    def record(self, fields: list[Any], budget: Budget, where: str) -> dict[str, Any]:
        """Makes the record from the fields of its payload, in the stored order of names.

        Raises:
            ValueError: a tensor leaves its storage.
            RawFileError: a storage is damaged.
        """
        record = dict.fromkeys(self.names)
        for name, field in self.scalars:
            record[name] = _value(field, fields)
        for name, tensor in self.tensors:
            flat = read_storage(_value(tensor.storage, fields), where)
            shape = tuple([_value(size, fields) for size in tensor.shape])
            record[name] = build_tensor(flat, tensor.offset, shape, tensor.strides, budget)
        return record


def _value(field: _Field, fields: list[Any]) -> Any:
    return field.constant if field.index < 0 else fields[field.index]


def compile_template(payload: bytes, where: str) -> RecordTemplate | None:
    """Makes a template from one record.

    Returns:
        None where the record holds more than numbers, texts and tensors, which then the machine has to read every time.

    Raises:
        UnsafePickleError, RawFileError: as :func:`jmp_data.raw.restricted_pickle.load_record`.
    """
    frames: list[tuple[int, int]] = []

    def mark(value: Any, start: int, stop: int) -> Any:
        if payload[start] == _FRAME:
            frames.append((start, stop))
            return value
        leaf = _LEAVES[type(value)](value)
        leaf.span = (start, stop)
        return leaf

    machine = PickleMachine(payload, where, table=ALLOWED, leaf=mark)
    memo = machine.memo = _WatchedMemo()
    attributes = record_attributes(machine.run(), where)
    tensors = {name: value for name, value in attributes.items() if isinstance(value, TensorSpec)}
    others = {name: value for name, value in attributes.items() if name not in tensors}
    if not all(value is None or type(value) is bool or hasattr(value, "span") for value in others.values()):
        return None
    frozen = memo.reused | _spans(leaf for spec in tensors.values() for leaf in (spec.offset, *spec.strides))
    used = [*others.values(), *(leaf for spec in tensors.values() for leaf in (spec.storage.stream, *spec.shape))]
    spans = _spans(used) - frozen
    fields = sorted([*spans, *frames])
    literal_bytes = len(payload) - sum(stop - start for start, stop in fields)
    pieces = _pieces(payload, fields) if literal_bytes <= _MAX_LITERAL_BYTES else None
    if pieces is None:
        return None
    index = {span: number for number, span in enumerate(fields)}

    def field(value: Any) -> _Field:
        number = index.get(getattr(value, "span", None), -1)  # type: ignore[arg-type]
        return _Field(number) if number >= 0 else _Field(-1, _plain_leaf(value))

    return RecordTemplate(
        pieces=pieces,
        scalars=tuple((str(name), field(value)) for name, value in others.items()),
        tensors=tuple((str(name), _tensor(spec, field)) for name, spec in tensors.items()),
        names=tuple(str(name) for name in attributes),
    )


def _spans(values: Any) -> set[tuple[int, int]]:
    return {value.span for value in values if hasattr(value, "span")}


def _plain_leaf(value: Any) -> Any:
    for plain, leaf in _LEAVES.items():
        if type(value) is leaf:
            return plain(value)
    return value


def _tensor(spec: TensorSpec, field: Callable[[Any], _Field]) -> _Tensor:
    shape = tuple(field(size) for size in spec.shape)
    return _Tensor(field(spec.storage.stream), int(spec.offset), shape, tuple(int(stride) for stride in spec.strides))


def _pieces(payload: bytes, fields: list[tuple[int, int]]) -> tuple[_Piece, ...] | None:
    """Cuts the payload into pieces; None where a field has an opcode that other records would not share."""
    pieces: list[_Piece] = []
    pattern: list[bytes] = []
    decoders: list[Callable[[bytes], Any]] = []
    frames: list[int] = []

    def finish(content: Callable[[bytes], Any] | None) -> None:
        compiled = re.compile(b"".join(pattern), re.DOTALL)
        pieces.append(_Piece(compiled, tuple(decoders), tuple(frames), content))
        for part in (pattern, decoders, frames):
            part.clear()

    position = 0
    for start, stop in fields:
        opcode = payload[start]
        pattern.append(re.escape(payload[position:start]))
        position = stop
        if opcode == _FRAME:
            pattern.append(rb"\x95(.{8})")
            decoders.append(_length)
            frames.append(len(decoders))
        elif opcode in b"KMJ":
            pattern.append(rb"(K.|M..|J....)")
            decoders.append(_integer)
        elif opcode == ord("G"):
            pattern.append(rb"G(.{8})")
            decoders.append(_real)
        elif opcode in _SIZED:
            pattern.append(re.escape(bytes([opcode])) + b"(.{%d})" % _SIZED[opcode])
            decoders.append(_length)
            finish(_text if opcode in b"\x8cX" else _unchanged)
        else:
            return None
    pattern.append(re.escape(payload[position:]))
    finish(None)
    return tuple(pieces)


def _integer(raw: bytes) -> int:
    if len(raw) == 2:
        return raw[1]
    return raw[1] | raw[2] << 8 if len(raw) == 3 else int(_INT32.unpack_from(raw, 1)[0])


def _real(raw: bytes) -> float:
    return float(_FLOAT64.unpack(raw)[0])


def _length(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8")


def _unchanged(raw: bytes) -> bytes:
    return raw


class TemplateCache:
    """The templates that fitted lately, most recent first.

    Files whose records never repeat stop being compiled after ``max_compilations`` in a row without a fit.
    """

    def __init__(self, *, capacity: int = 8, max_compilations: int = 32) -> None:
        self._capacity = capacity
        self._max_compilations = max_compilations
        self._wasted = 0
        self._templates: list[RecordTemplate] = []

    def decode(self, payload: bytes, where: str) -> Mapping[str, Any] | None:
        """Decodes a payload that fits a known template; None where none fits.

        Raises:
            ValueError, RawFileError: as :meth:`RecordTemplate.record`.
        """
        for number, template in enumerate(self._templates):
            fields = template.fields(payload)
            if fields is not None:
                self._wasted = 0
                if number:
                    self._templates = [template, *(other for other in self._templates if other is not template)]
                return template.record(fields, Budget(len(payload)), where)
        return None

    def learn(self, payload: bytes, where: str) -> None:
        """Compiles a template of a payload that none fitted and that the machine has read without error."""
        if self._wasted >= self._max_compilations:
            return
        self._wasted += 1
        template = compile_template(payload, where)
        if template is not None:
            self._templates = [template, *self._templates][: self._capacity]
