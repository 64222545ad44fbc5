"""Reads the pickle inside a `torch.save` file as a description of what it would build, and builds none of it.

A released checkpoint is a pickle: weights, and around them whatever the training program kept, objects of classes that
are not installed here included. `torch.load(weights_only=True)` refuses such a file whole. This interpreter makes plain
dictionaries, lists, tuples, numbers, text and tensors, and in place of any other object a `Foreign`: a record of its
class's name and its contents. No class or function that the file names is imported, looked up or called.

A call into the standard library that data do not need (`os.system`, `builtins.eval`, ...) would be inert as well, but
no training program writes one, so it stops the reading: such a file was made to be dangerous.
"""

from __future__ import annotations

import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jmp_data.errors import RawFileError, UnsafePickleError

# Modules of the standard library whose objects are data.
_DATA_MODULES = frozenset(
    {
        "_codecs", "argparse", "array", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum",
        "fractions", "functools", "inspect", "ipaddress", "logging", "pathlib", "random", "re", "string", "time",
        "types", "typing", "uuid", "zoneinfo",
    }
)  # fmt: skip
_DATA_BUILTINS = frozenset(
    {
        "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object", "range",
        "set", "slice", "str", "tuple", "type",
    }
)  # fmt: skip
_MAX_INTEGER_BYTES = 64


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the file names; only its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Foreign:
    """Stands for an object that was not made.

    Attributes:
        kind: its class, or the function that would have made it.
        arguments: what it would have been made with.
        state: what would have been set on it.
        items: what would have been appended to it.
        entries: what would have been stored in it by key.
    """

    kind: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)


class InertUnpickler:
    """Interprets one pickle of protocol 2 to 5.

    Args:
        data: the pickle.
        where: file, for error messages.
        load_storage: makes what a persistent id stands for.
        makers: functions by the names that the file may call; all other calls give a `Foreign`.

    Attributes:
        foreign: names of all classes and functions that a `Foreign` stands for, with how many.
    """

    def __init__(
        self,
        data: bytes,
        where: str,
        *,
        load_storage: Callable[[tuple[Any, ...]], object],
        makers: dict[str, Callable[..., object]],
    ) -> None:
        self.data = data
        self.where = where
        self.position = 0
        self.stack: list[Any] = []
        self.foreign: dict[str, int] = {}
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._load_storage = load_storage
        self._makers = {**_MAKERS, **makers}

    def load(self) -> Any:
        """Interpret up to the end.

        Raises:
            UnsafePickleError: the file calls something that no data need.
            RawFileError: the bytes are no complete pickle.
        """
        start = 0
        try:
            while True:
                start = self.position
                opcode = self.take(1)
                if opcode == b".":
                    return self.stack.pop()
                _HANDLERS[opcode](self)
        except RawFileError:
            raise
        except KeyError as error:
            reason = f"opcode or reference {error} is unknown"
        except (ValueError, TypeError, IndexError, struct.error, OverflowError, RuntimeError) as error:
            reason = str(error)
        raise RawFileError(f"{self.where}: its pickle is damaged at byte {start}: {reason}")

    def take(self, count: int) -> bytes:
        """The next bytes; refuses before taking memory for bytes that are not there."""
        stop = self.position + count
        if count < 0 or stop > len(self.data):
            raise ValueError(f"it declares {count} bytes where {len(self.data) - self.position} are left")
        taken = self.data[self.position : stop]
        self.position = stop
        return taken

    def line(self) -> str:
        """Text up to the next newline."""
        end = self.data.index(b"\n", self.position)
        text = self.data[self.position : end].decode()
        self.position = end + 1
        return text

    def number(self, layout: struct.Struct) -> Any:
        """One number of a fixed layout."""
        return layout.unpack(self.take(layout.size))[0]

    def push(self, value: object) -> None:
        """Put an object on the stack."""
        self.stack.append(value)

    def push_name(self, module: object, name: object) -> None:
        """Put a class or function on the stack, by its present name where Python 2 had another."""
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a class name is not text")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.stack.append(Name(module, name))

    def mark(self) -> None:
        """Begin a group of objects."""
        self._marks.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """End a group and return its objects."""
        items = self.stack
        self.stack = self._marks.pop()
        return items

    def remember(self, index: int) -> None:
        """Store the top of the stack."""
        self._memo[index] = self.stack[-1]

    def memoize(self) -> None:
        """Store the top of the stack under the next number."""
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        """Push what was stored."""
        self.stack.append(self._memo[index])

    def persistent(self) -> None:
        """Push the storage that a persistent id means."""
        key = self.stack.pop()
        if not isinstance(key, tuple):
            raise ValueError("a persistent id is no tuple")
        self.stack.append(self._load_storage(key))

    def call(self, function: object, arguments: object) -> None:
        """Push what a call stands for: a tensor or plain value for the few known functions, else a `Foreign`."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            self._refuse(f"calls the result of a call ({type(function).__name__})")
        maker = self._makers.get(str(function))
        if maker is not None:
            self.stack.append(maker(*arguments))
            return
        self._check_harmless(function)
        self.foreign[str(function)] = self.foreign.get(str(function), 0) + 1
        self.stack.append(Foreign(function, arguments))

    def _check_harmless(self, function: Name) -> None:
        root = function.module.partition(".")[0]
        if root == "builtins":
            harmless = function.name in _DATA_BUILTINS
        else:
            harmless = root in _DATA_MODULES or root not in sys.stdlib_module_names
        if not harmless:
            self._refuse(f"calls {function}")

    def build(self) -> None:
        """Give the object below the top its state."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target.state = state
        elif not isinstance(target, dict):
            self._refuse(f"sets the state of a {type(target).__name__}")
        # A dictionary with attributes is a state dict with its version notes, which nothing here needs.

    def store(self, items: list[Any]) -> None:
        """Set alternating keys and values in the object on top."""
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Foreign) else target
        if type(entries) is not dict or len(items) % 2:
            raise ValueError(f"entries are stored in a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[_key(key)] = value

    def extend(self, items: list[Any]) -> None:
        """Append to the object on top."""
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
            return
        sequence = target.items if isinstance(target, Foreign) else target
        if type(sequence) is not list:
            raise ValueError(f"items are appended to a {type(target).__name__}")
        sequence.extend(items)

    def _refuse(self, what: str) -> NoReturn:
        raise UnsafePickleError(
            f"{self.where}: the file {what}, which no checkpoint needs; nothing was executed. Do not use this file"
        )


def _key(value: Any) -> Any:
    """A dictionary key or member of a set; nested tuples are slow to hash, and deep ones end the process."""
    if isinstance(value, tuple) and any(isinstance(part, tuple) for part in value):
        raise ValueError("a key is a nested tuple")
    return value


def _make_dict(*arguments: Any) -> dict[Any, Any]:
    """An OrderedDict or Counter, or a defaultdict without its factory."""
    content = arguments[0] if arguments else ()
    if isinstance(content, dict):
        return dict(content)
    return {_key(key): value for key, value in content} if isinstance(content, list) else {}


def _make_set(items: Any = ()) -> set[Any]:
    return set(map(_key, items))


def _make_attribute(owner: object, attribute: object) -> object:
    """Nested classes are pickled as attributes of their class, bound methods as attributes of their object."""
    if isinstance(owner, Name):
        return Name(owner.module, f"{owner.name}.{attribute}")
    return Foreign(Name("builtins", "getattr"), (owner, attribute))


_MAKERS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _make_dict,
    "collections.defaultdict": _make_dict,
    "collections.Counter": _make_dict,
    "builtins.bytes": lambda *arguments: b"" if not arguments else Foreign(Name("builtins", "bytes"), arguments),
    "builtins.set": _make_set,
    "builtins.frozenset": _make_set,
    "builtins.getattr": _make_attribute,
    "_codecs.encode": lambda text, encoding="latin1": str(text).encode(str(encoding)),
}

_UINT8, _UINT16, _INT32 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<i")
_UINT32, _UINT64, _FLOAT64 = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct(">d")


def _constant(value: object) -> Callable[[InertUnpickler], None]:
    return lambda u: u.push(value)


def _value(layout: struct.Struct) -> Callable[[InertUnpickler], None]:
    return lambda u: u.push(u.number(layout))


def _text(header: struct.Struct, encoding: str = "utf-8") -> Callable[[InertUnpickler], None]:
    return lambda u: u.push(u.take(u.number(header)).decode(encoding, "surrogatepass"))


def _bytes(header: struct.Struct) -> Callable[[InertUnpickler], None]:
    return lambda u: u.push(u.take(u.number(header)))


def _long(header: struct.Struct) -> Callable[[InertUnpickler], None]:
    def push(u: InertUnpickler) -> None:
        count = u.number(header)
        if not 0 <= count <= _MAX_INTEGER_BYTES:
            raise ValueError(f"an integer of {count} bytes")
        u.push(int.from_bytes(u.take(count), "little", signed=True))

    return push


def _tuple(count: int) -> Callable[[InertUnpickler], None]:
    def push(u: InertUnpickler) -> None:
        if len(u.stack) < count:
            raise ValueError("a tuple is shorter than it declares")
        items = tuple(u.stack[-count:])
        del u.stack[-count:]
        u.push(items)

    return push


def _dict(u: InertUnpickler) -> None:
    items = u.group()
    u.push({})
    u.store(items)


def _reduce(u: InertUnpickler) -> None:
    arguments, function = u.stack.pop(), u.stack.pop()
    u.call(function, arguments)


def _new(u: InertUnpickler) -> None:
    arguments, kind = u.stack.pop(), u.stack.pop()
    u.call(kind, arguments)


def _new_with_keywords(u: InertUnpickler) -> None:
    keywords, arguments, kind = u.stack.pop(), u.stack.pop(), u.stack.pop()
    u.call(kind, (*arguments, keywords))


def _stack_global(u: InertUnpickler) -> None:
    name, module = u.stack.pop(), u.stack.pop()
    u.push_name(module, name)


def _setitem(u: InertUnpickler) -> None:
    value, key = u.stack.pop(), u.stack.pop()
    u.store([key, value])


def _append(u: InertUnpickler) -> None:
    u.extend([u.stack.pop()])


_HANDLERS: dict[bytes, Callable[[InertUnpickler], object]] = {
    b"\x80": lambda u: u.take(1),
    b"\x95": lambda u: u.take(8),
    b"K": _value(_UINT8),
    b"M": _value(_UINT16),
    b"J": _value(_INT32),
    b"G": _value(_FLOAT64),
    b"\x8a": _long(_UINT8),
    b"\x8b": _long(_INT32),
    b"\x8c": _text(_UINT8),
    b"X": _text(_UINT32),
    b"\x8d": _text(_UINT64),
    b"U": _text(_UINT8, "latin1"),
    b"T": _text(_UINT32, "latin1"),
    b"C": _bytes(_UINT8),
    b"B": _bytes(_UINT32),
    b"\x8e": _bytes(_UINT64),
    b"\x96": _bytes(_UINT64),
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b")": _constant(()),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": lambda u: u.push(tuple(u.group())),
    b"]": lambda u: u.push([]),
    b"l": lambda u: u.push(u.group()),
    b"a": _append,
    b"e": lambda u: u.extend(u.group()),
    b"}": lambda u: u.push({}),
    b"d": _dict,
    b"s": _setitem,
    b"u": lambda u: u.store(u.group()),
    b"\x8f": lambda u: u.push(set()),
    b"\x90": lambda u: u.extend(u.group()),
    b"\x91": lambda u: u.push(_make_set(u.group())),
    b"(": lambda u: u.mark(),
    b"0": lambda u: u.stack.pop(),
    b"1": lambda u: u.group(),
    b"2": lambda u: u.push(u.stack[-1]),
    b"\x94": lambda u: u.memoize(),
    b"q": lambda u: u.remember(u.number(_UINT8)),
    b"r": lambda u: u.remember(u.number(_UINT32)),
    b"h": lambda u: u.recall(u.number(_UINT8)),
    b"j": lambda u: u.recall(u.number(_UINT32)),
    b"c": lambda u: u.push_name(u.line(), u.line()),
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _new,
    b"\x92": _new_with_keywords,
    b"b": lambda u: u.build(),
    b"Q": lambda u: u.persistent(),
}
