"""The few classes and functions that OCP-style records name, each as an inert stand-in, and how they become plain
values.

A stand-in never imports or calls the real thing. Tensors and NumPy arrays are first *described* (:class:`TensorSpec`,
:class:`ArraySpec`) and made into arrays only once the whole pickle has been read, by :func:`plain_value`, which also
turns every container into a fresh tree of bounded depth and size: cycles and "billion laughs" end there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jmp_data.errors import RawFileError
from jmp_data.raw.pickle_machine import Buildable, Global, Instance
from jmp_data.raw.torch_storages import STORAGE_CLASSES, FlatArray, read_storage

_MAX_DEPTH = 16
_MAX_DIMENSIONS = 32
# A tensor may repeat its storage (stride 0), but not turn a small record into a large one.
_EXPANSION = 4
_SLACK = 1 << 16

_PLAIN_DTYPE = re.compile(r"[biufcSU]\d{1,7}")
_PLAIN_TYPES = frozenset({int, float, str, bytes, bool, type(None)})


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """The bytes of one ``torch.save`` stream, not yet read."""

    stream: bytes


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A strided window onto a storage; counts are in elements, unchecked until :func:`build_tensor`."""

    storage: StorageSpec
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class DtypeSpec(Buildable):
    """A NumPy dtype under construction: ``numpy.dtype('f8', False, True)`` followed by a state with the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order: Literal["<", ">", "|", "="] = "="

    def build(self, state: object) -> None:
        """Takes (version, order, None, None, None, …); sub-arrays and named fields are refused."""
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
                self.order = order
            case _:
                raise ValueError("a structured NumPy type")

    def dtype(self) -> np.dtype[Any]:
        """The real dtype of a number or text type."""
        return np.dtype(self.code).newbyteorder(self.order)


class ArraySpec(Buildable):
    """A NumPy array under construction: made empty, then given (version, shape, dtype, is_fortran, bytes)."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: tuple[tuple[int, ...], DtypeSpec, bool, bytes] | None = None

    def build(self, state: object) -> None:
        """Keeps the description; sizes are checked by :meth:`array`."""
        match state:
            case (int(), tuple(shape), DtypeSpec() as dtype, bool(fortran), bytes(data)):
                self.state = (_sizes(shape), dtype, fortran, data)
            case _:
                raise ValueError("a NumPy array of objects, or with an unknown state")

    def array(self) -> NDArray[Any]:
        """The array itself, owning its memory.

        Raises:
            ValueError: the bytes do not fill the shape.
        """
        if self.state is None:
            raise ValueError("a NumPy array without content")
        shape, spec, fortran, data = self.state
        dtype = spec.dtype()
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"a NumPy array of shape {shape} and type {dtype} holds {len(data)} bytes")
        return np.ndarray(shape, dtype, data, order="F" if fortran else "C").copy()


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > _MAX_DIMENSIONS:
        raise ValueError("a shape is no tuple of at most 32 sizes")
    for value in values:
        if not isinstance(value, int) or not 0 <= value < 1 << 62:
            raise ValueError("a shape or stride is no non-negative integer")
    return values


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TensorSpec:
    match arguments:
        case (StorageSpec() as storage, int(offset), tuple(shape), tuple(strides), *_):
            return TensorSpec(storage, offset, shape, strides)
    raise ValueError("a tensor is not made of a storage, an offset, a shape and strides")


def _load_from_bytes(arguments: tuple[Any, ...]) -> StorageSpec:
    match arguments:
        case (bytes(stream),):
            return StorageSpec(stream)
    raise ValueError("a torch storage is not made of bytes")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return {}


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    match arguments:
        case (tuple(sizes) | list(sizes),):
            return _sizes(tuple(sizes))
    raise ValueError("a torch.Size is not made of sizes")


def _device(arguments: tuple[Any, ...]) -> str:
    if not all(isinstance(part, str | int) for part in arguments):
        raise ValueError("a torch.device is not made of a name and an index")
    return ":".join(str(part) for part in arguments)


def _dtype(arguments: tuple[Any, ...]) -> DtypeSpec:
    match arguments:
        case (str(code), *_) if _PLAIN_DTYPE.fullmatch(code):
            return DtypeSpec(code)
    raise ValueError("a NumPy type that is neither a number nor text")


def _scalar(arguments: tuple[Any, ...]) -> np.generic:
    match arguments:
        case (DtypeSpec() as spec, bytes(data)) if spec.dtype().itemsize == len(data) > 0:
            value: np.generic = np.frombuffer(data, spec.dtype())[0]
            return value
    raise ValueError("a NumPy scalar is not made of a type and its bytes")


def _reconstruct(arguments: tuple[Any, ...]) -> ArraySpec:
    match arguments:
        case (Global(name="numpy.ndarray"), (0,), _):
            return ArraySpec()
    raise ValueError("a NumPy array of an unknown class")


def _latin1(arguments: tuple[Any, ...]) -> bytes:
    match arguments:
        case (str(text), "latin1"):
            return text.encode("latin1")
    raise ValueError("bytes are not stored as latin1 text")


def _new_object(arguments: tuple[Any, ...]) -> Instance:
    match arguments:
        case (Global(is_class=True) as made, Global(name="builtins.object"), None):
            return Instance(made.name)
    raise ValueError("an object of an unknown class")


def _table(entries: list[Global]) -> dict[tuple[str, str], Global]:
    table = dict(STORAGE_CLASSES)
    for entry in entries:
        module, _, name = entry.name.rpartition(".")
        table[module, name] = entry
    return table


_PYG = ("data.Data", "data.DataEdgeAttr", "data.DataTensorAttr", "storage.GlobalStorage")
_TORCH_DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")

ALLOWED: Mapping[tuple[str, str], Global] = {
    **_table(
        [
            Global("collections.OrderedDict", call=_ordered_dict),
            Global("copyreg._reconstructor", call=_new_object),
            Global("builtins.object"),
            Global("_codecs.encode", call=_latin1),
            Global("torch._utils._rebuild_tensor_v2", call=_rebuild_tensor),
            Global("torch._utils._rebuild_tensor", call=_rebuild_tensor),
            Global("torch.storage._load_from_bytes", call=_load_from_bytes),
            Global("torch.Size", call=_size),
            Global("torch.device", call=_device),
            Global("numpy.dtype", call=_dtype),
            Global("numpy.ndarray"),
            *(Global(f"torch.{name}", tag=np.dtype(name)) for name in _TORCH_DTYPES),
            *(Global(f"numpy.{core}.multiarray.scalar", call=_scalar) for core in ("core", "_core")),
            *(Global(f"numpy.{core}.multiarray._reconstruct", call=_reconstruct) for core in ("core", "_core")),
            *(Global(f"torch_geometric.data.{name}", is_class=True) for name in _PYG),
        ]
    ),
    # Protocol 2 spells these two as Python 2 did.
    ("copy_reg", "_reconstructor"): Global("copyreg._reconstructor", call=_new_object),
    ("__builtin__", "object"): Global("builtins.object"),
}
"""Everything that a record may name; protocol 2 writes the Python 2 spellings."""


class Budget:
    """How much a record may grow while it is turned into plain values: bytes of tensors and visited objects."""

    __slots__ = ("nbytes", "objects")

    def __init__(self, payload_size: int) -> None:
        self.nbytes = _EXPANSION * payload_size + _SLACK
        self.objects = _EXPANSION * payload_size + _SLACK

    def spend_bytes(self, count: int) -> None:
        """Raises ValueError when tensors repeat their storages too often."""
        self.nbytes -= count
        if self.nbytes < 0:
            raise ValueError("its tensors are far larger than the record that holds them")

    def spend_object(self) -> None:
        """Raises ValueError when shared containers multiply."""
        self.objects -= 1
        if self.objects < 0:
            raise ValueError("it holds the same containers over and over")


def build_tensor(
    values: FlatArray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], budget: Budget
) -> NDArray[Any]:
    """Copies a strided window of a storage.

    Args:
        values: (numel,) the storage.
        offset: first element.
        shape: sizes.
        strides: steps between neighbours along each axis, in elements.
        budget: what the record may still allocate.

    Returns:
        A C-ordered array of ``shape`` that owns its memory.

    Raises:
        ValueError: the window leaves the storage, or the budget is spent.
    """
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of shape {shape} has strides {strides}")
    count, last, row_major = 1, offset, True
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if type(size) is not int or type(stride) is not int or size < 0 or stride < 0:
            raise ValueError(f"a tensor has shape {shape} and strides {strides}")
        row_major = row_major and (stride == count or size == 1)
        count *= size
        last += (size - 1) * stride
    if type(offset) is not int or offset < 0 or (count and last >= values.size):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {values.size} values")
    itemsize = values.itemsize
    budget.spend_bytes(count * itemsize)
    if not count:
        return np.empty(shape, values.dtype)
    if row_major:
        return values[offset : offset + count].reshape(shape).copy()
    steps = tuple(stride * itemsize for stride in strides)
    return np.ndarray(shape, values.dtype, values, offset * itemsize, steps).copy("C")


def record_attributes(value: object, where: str) -> Mapping[str, Any]:
    """Finds the attributes of a record in whichever form its generation of PyTorch Geometric pickled it.

    Raises:
        RawFileError: the pickle holds something else than a record.
    """
    attributes: object = value
    if isinstance(value, Instance):
        attributes = value.attributes
        store = value.attributes.get("_store")
        if isinstance(store, Instance):
            attributes = store.attributes
        if "_mapping" in attributes:
            attributes = attributes["_mapping"]
    if not isinstance(attributes, dict) or not all(isinstance(name, str) for name in attributes):
        raise RawFileError(
            f"{where}: the record is a {type(value).__name__}, not a data object or dictionary of named values"
        )
    return attributes


def plain_value(value: object, where: str, budget: Budget, depth: int = 0) -> Any:
    """Turns what the machine built into numbers, text, NumPy arrays and fresh lists, tuples and dictionaries.

    Raises:
        ValueError: too deep, too large, or a class where a value should be.
        RawFileError: a tensor's storage is damaged.
    """
    kind = type(value)
    if kind in _PLAIN_TYPES or isinstance(value, np.generic):
        return value
    budget.spend_object()
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, TensorSpec):
        flat = read_storage(value.storage.stream, where)
        return build_tensor(flat, value.offset, value.shape, value.strides, budget)
    if isinstance(value, ArraySpec):
        array = value.array()
        budget.spend_bytes(array.nbytes)
        return array
    if kind is dict and isinstance(value, dict):
        return {key: plain_value(item, where, budget, depth + 1) for key, item in value.items()}
    if kind is list or kind is tuple:
        items = [plain_value(item, where, budget, depth + 1) for item in value]  # type: ignore[attr-defined]
        return items if kind is list else tuple(items)
    if isinstance(value, Instance):
        return plain_value(dict(record_attributes(value, where)), where, budget, depth + 1)
    if isinstance(value, StorageSpec):
        return read_storage(value.stream, where).copy()
    if isinstance(value, Global) and isinstance(value.tag, np.dtype):
        return value.tag
    if isinstance(value, DtypeSpec):
        return value.dtype()
    raise ValueError(f"it stores {value.name if isinstance(value, Global) else 'a ' + kind.__name__} as a value")
