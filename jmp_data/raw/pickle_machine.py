"""A pickle interpreter that can only build plain data.

Python's own ``pickle.Unpickler`` is the wrong base for untrusted bytes even when ``find_class`` is overridden: a memo
index of 2^31 makes it allocate 32 GB, a deeply nested tuple used as a dictionary key overflows the C stack, and
``BUILD`` writes into the ``__dict__`` of whatever stands on the stack. This interpreter runs the opcodes that
``pickle.dumps`` writes with protocols 2 to 5, over plain Python lists, dictionaries and tuples. A class or function
that the pickle names is looked up in a table of inert stand-ins (:class:`Global`); what is not in the table stops the
reading before anything was done. Every declared length is compared with the bytes at hand before memory is taken, so
that memory stays proportional to the payload.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from jmp_data.errors import RawFileError, UnsafePickleError

# No count, id or magic number of a record needs more; longer ones only cost time.
_MAX_INTEGER_BYTES = 64
_STOP = ord(".")

_UINT16 = struct.Struct("<H")
_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_FLOAT64 = struct.Struct(">d")


@dataclass(frozen=True, slots=True)
class Global:
    """The inert stand-in of a class or function that a pickle may name.

    Attributes:
        name: dotted name as the pickle spells it.
        call: what REDUCE does with the pickled arguments; None where the thing may not be called.
        is_class: whether NEWOBJ may make an :class:`Instance` of it.
        tag: plain value that it stands for, such as a NumPy dtype for ``torch.FloatStorage``.
    """

    name: str
    call: Callable[[tuple[Any, ...]], object] | None = None
    is_class: bool = False
    tag: object = None


class Buildable:
    """Base of the stand-in objects that the BUILD opcode may give a state."""

    __slots__ = ()

    def build(self, state: object) -> None:
        """Takes the pickled state; raises ValueError where it has not the expected form."""
        raise NotImplementedError


class Instance(Buildable):
    """An object of a stand-in class: its class name and its pickled attributes, nothing else."""

    __slots__ = ("attributes", "class_name")

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name
        self.attributes: dict[Any, Any] = {}

    def build(self, state: object) -> None:
        """Keeps the attributes; objects with slots pickle a pair of dictionaries."""
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict):
                self.attributes.update(part)
            elif part is not None:
                raise ValueError(f"the state of {self.class_name} is a {type(part).__name__}, not a dictionary")


@dataclass(frozen=True, slots=True)
class PersistentId:
    """What ``BINPERSID`` refers to: torch writes one for every storage."""

    key: tuple[Any, ...]


class PickleMachine:
    """Interprets one pickle inside ``data``.

    Args:
        data: the bytes that hold the pickle.
        where: file and record, for error messages.
        table: the stand-ins by (module, name).
        start: offset of the first opcode.
        persistent_ids: whether BINPERSID is allowed (only inside torch streams).
        leaf: wraps each number and byte string on its way to the stack, given its opcode's offset; lets the template
            compiler see which opcode a value came from.

    After :meth:`run`, ``position`` is the offset behind the STOP opcode.
    """

    def __init__(
        self,
        data: bytes,
        where: str,
        *,
        table: Mapping[tuple[str, str], Global],
        start: int = 0,
        persistent_ids: bool = False,
        leaf: Callable[[Any, int, int], Any] | None = None,
    ) -> None:
        self.data = data
        self.where = where
        self.position = start
        self.table = table
        self.persistent_ids = persistent_ids
        self.leaf = leaf
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        """Interprets up to STOP and returns the object; specs and instances in it are still stand-ins.

        Raises:
            UnsafePickleError: the pickle asks for something that is not in the table.
            RawFileError: the bytes are no complete pickle of this kind.
        """
        data = self.data
        handlers = _HANDLERS
        try:
            while True:
                start = self.position
                opcode = data[start]
                self.position = start + 1
                if opcode == _STOP:
                    break
                handlers[opcode](self)
        except UnsafePickleError:
            raise
        except (ValueError, TypeError, IndexError, KeyError, struct.error, OverflowError) as error:
            reason = "it ends too early" if isinstance(error, IndexError) else str(error)
            raise RawFileError(f"{self.where}: damaged pickle at byte {start}: {reason}") from error
        if len(self.stack) != 1 or self.marks:
            raise RawFileError(f"{self.where}: damaged pickle: it stops with {len(self.stack)} objects instead of one")
        return self.stack[0]

    def take(self, count: int) -> bytes:
        """Returns the next ``count`` bytes, or raises before allocating them."""
        start = self.position
        stop = start + count
        if stop > len(self.data):
            raise ValueError(f"it declares {count} bytes where {len(self.data) - start} are left")
        self.position = stop
        return self.data[start:stop]

    def take_line(self) -> str:
        """Returns the text up to the next newline, as the GLOBAL opcode stores names."""
        end = self.data.find(b"\n", self.position, self.position + 512)
        if end < 0:
            raise ValueError("a class name does not end")
        line = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return line

    def pop_mark(self) -> list[Any]:
        """Removes and returns what was pushed since the last MARK."""
        if not self.marks:
            raise ValueError("an opcode needs a mark where there is none")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def push_leaf(self, value: object, start: int) -> None:
        """Pushes a number or byte string whose opcode began at ``start``."""
        self.stack.append(value if self.leaf is None else self.leaf(value, start, self.position))

    def push_global(self, module: object, name: object) -> None:
        """Pushes the stand-in of ``module.name`` or refuses."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a class name is not text")
        found = self.table.get((module, name))
        if found is None:
            self.refuse(f"asks for {module}.{name}"[:200])
        self.stack.append(found)

    def refuse(self, what: str) -> NoReturn:
        """Raises the error for a pickle that wants more than plain data."""
        raise UnsafePickleError(
            f"{self.where}: the pickle {what}, which no published data record needs; nothing was executed. "
            "If the file is trusted, convert it with the program that wrote it."
        )


def _store(target: Any, items: list[Any]) -> None:
    """Sets alternating keys and values; only text and integers may be keys, as other keys can be made slow to hash."""
    if type(target) is not dict or len(items) % 2:
        raise ValueError("a dictionary opcode meets something else")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):
            raise ValueError(f"a {type(key).__name__} is used as a dictionary key")
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise ValueError("a list opcode meets something else")
    target.extend(items)


def _proto(m: PickleMachine) -> None:
    version = m.take(1)[0]
    if version > 5:
        raise ValueError(f"pickle protocol {version} is unknown")


def _frame(m: PickleMachine) -> None:
    start = m.position - 1
    (length,) = _UINT64.unpack(m.take(8))
    if m.position + length > len(m.data):
        raise ValueError(f"it declares a frame of {length} bytes where {len(m.data) - m.position} are left")
    if m.leaf is not None:
        m.leaf(length, start, m.position)


def _number(size: int, unpack: Callable[[bytes], tuple[Any, ...]]) -> Callable[[PickleMachine], None]:
    def push(m: PickleMachine) -> None:
        start = m.position - 1
        m.push_leaf(unpack(m.take(size))[0], start)

    return push


def _long(header: struct.Struct) -> Callable[[PickleMachine], None]:
    def push(m: PickleMachine) -> None:
        start = m.position - 1
        (count,) = header.unpack(m.take(header.size))
        if not 0 <= count <= _MAX_INTEGER_BYTES:
            raise ValueError(f"an integer of {count} bytes")
        m.push_leaf(int.from_bytes(m.take(count), "little", signed=True), start)

    return push


def _text(header: struct.Struct, encoding: str = "utf-8") -> Callable[[PickleMachine], None]:
    def push(m: PickleMachine) -> None:
        start = m.position - 1
        (count,) = header.unpack(m.take(header.size))
        m.push_leaf(m.take(count).decode(encoding), start)

    return push


def _bytes(header: struct.Struct) -> Callable[[PickleMachine], None]:
    def push(m: PickleMachine) -> None:
        start = m.position - 1
        (count,) = header.unpack(m.take(header.size))
        m.push_leaf(m.take(count), start)

    return push


def _constant(value: object) -> Callable[[PickleMachine], None]:
    return lambda m: m.stack.append(value)


def _last(count: int) -> Callable[[PickleMachine], None]:
    def pack(m: PickleMachine) -> None:
        if len(m.stack) < count:
            raise IndexError
        items = tuple(m.stack[-count:])
        del m.stack[-count:]
        m.stack.append(items)

    return pack


def _memoize(m: PickleMachine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _put(header: struct.Struct) -> Callable[[PickleMachine], None]:
    def put(m: PickleMachine) -> None:
        m.memo[header.unpack(m.take(header.size))[0]] = m.stack[-1]

    return put


def _get(header: struct.Struct) -> Callable[[PickleMachine], None]:
    def get(m: PickleMachine) -> None:
        (index,) = header.unpack(m.take(header.size))
        if index not in m.memo:
            raise ValueError(f"it refers to object {index}, which it never stored")
        m.stack.append(m.memo[index])

    return get


def _setitem(m: PickleMachine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _store(m.stack[-1], [key, value])


def _setitems(m: PickleMachine) -> None:
    items = m.pop_mark()
    _store(m.stack[-1], items)


def _dict(m: PickleMachine) -> None:
    made: dict[Any, Any] = {}
    _store(made, m.pop_mark())
    m.stack.append(made)


def _append(m: PickleMachine) -> None:
    value = m.stack.pop()
    _extend(m.stack[-1], [value])


def _appends(m: PickleMachine) -> None:
    items = m.pop_mark()
    _extend(m.stack[-1], items)


def _global(m: PickleMachine) -> None:
    module = m.take_line()
    m.push_global(module, m.take_line())


def _stack_global(m: PickleMachine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.push_global(module, name)


def _reduce(m: PickleMachine) -> None:
    arguments, function = m.stack.pop(), m.stack.pop()
    if type(function) is not Global or function.call is None:
        m.refuse(f"calls {function.name if type(function) is Global else 'a ' + type(function).__name__}")
    if type(arguments) is not tuple:
        raise ValueError("the arguments of a call are no tuple")
    m.stack.append(function.call(arguments))


def _newobj(m: PickleMachine) -> None:
    arguments, made = m.stack.pop(), m.stack.pop()
    if type(made) is not Global or not made.is_class:
        m.refuse(f"makes an object of {made.name if type(made) is Global else 'a ' + type(made).__name__}")
    if arguments != ():
        raise ValueError(f"{made.name} is made with arguments")
    m.stack.append(Instance(made.name))


def _build(m: PickleMachine) -> None:
    state, target = m.stack.pop(), m.stack[-1]
    if not isinstance(target, Buildable):
        m.refuse(f"sets the state of {target.name if type(target) is Global else 'a ' + type(target).__name__}")
    target.build(state)


def _persistent_id(m: PickleMachine) -> None:
    key = m.stack.pop()
    if not m.persistent_ids:
        m.refuse("refers to an object outside of itself")
    if type(key) is not tuple:
        raise ValueError("a persistent id is no tuple")
    m.stack.append(PersistentId(key))


def _refused(name: str) -> Callable[[PickleMachine], None]:
    return lambda m: m.refuse(f"uses the opcode {name}")


def _unknown(m: PickleMachine) -> None:
    raise ValueError(f"unknown opcode 0x{m.data[m.position - 1]:02x}")


_UINT8 = struct.Struct("<B")

_BY_CHARACTER: dict[bytes, Callable[[PickleMachine], None]] = {
    b"\x80": _proto,
    b"\x95": _frame,
    b"K": _number(1, _UINT8.unpack),
    b"M": _number(2, _UINT16.unpack),
    b"J": _number(4, _INT32.unpack),
    b"G": _number(8, _FLOAT64.unpack),
    b"\x8a": _long(_UINT8),
    b"\x8b": _long(_INT32),
    b"\x8c": _text(_UINT8),
    b"X": _text(_UINT32),
    b"\x8d": _text(_UINT64),
    b"U": _text(_UINT8, "ascii"),
    b"T": _text(_UINT32, "ascii"),
    b"C": _bytes(_UINT8),
    b"B": _bytes(_UINT32),
    b"\x8e": _bytes(_UINT64),
    b"\x96": _bytes(_UINT64),
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b")": _constant(()),
    b"\x85": _last(1),
    b"\x86": _last(2),
    b"\x87": _last(3),
    b"t": lambda m: m.stack.append(tuple(m.pop_mark())),
    b"]": lambda m: m.stack.append([]),
    b"a": _append,
    b"e": _appends,
    b"l": lambda m: m.stack.append(m.pop_mark()),
    b"}": lambda m: m.stack.append({}),
    b"s": _setitem,
    b"u": _setitems,
    b"d": _dict,
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"\x94": _memoize,
    b"q": _put(_UINT8),
    b"r": _put(_UINT32),
    b"h": _get(_UINT8),
    b"j": _get(_UINT32),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _newobj,
    b"b": _build,
    b"Q": _persistent_id,
    # Opcodes that no protocol-2-to-5 pickle of plain records needs; several are the way into hostile tricks.
    b"0": _refused("POP"),
    b"1": _refused("POP_MARK"),
    b"2": _refused("DUP"),
    b"i": _refused("INST"),
    b"o": _refused("OBJ"),
    b"P": _refused("PERSID"),
    b"\x82": _refused("EXT1"),
    b"\x83": _refused("EXT2"),
    b"\x84": _refused("EXT4"),
    b"\x8f": _refused("EMPTY_SET"),
    b"\x90": _refused("ADDITEMS"),
    b"\x91": _refused("FROZENSET"),
    b"\x92": _refused("NEWOBJ_EX"),
    b"\x97": _refused("NEXT_BUFFER"),
    b"\x98": _refused("READONLY_BUFFER"),
}
_HANDLERS = [_BY_CHARACTER.get(bytes([code]), _unknown) for code in range(256)]
