"""Decodes the pickled records of OCP-style LMDB files without executing anything.

OC20, OC22 and their relatives store every structure as a pickle of a ``torch_geometric`` ``Data`` object, and
unpickling is running a program. Here a record is only *read*: see :mod:`jmp_data.raw.pickle_machine` for how, and
:mod:`jmp_data.raw.pickle_standins` for the list of what may occur. Neither torch nor PyTorch Geometric is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jmp_data.errors import RawFileError
from jmp_data.raw.pickle_machine import PickleMachine
from jmp_data.raw.pickle_standins import ALLOWED, Budget, plain_value, record_attributes
from jmp_data.raw.pickle_templates import TemplateCache

_TEMPLATES = TemplateCache()


def load_record(payload: bytes, *, where: str) -> Mapping[str, Any]:
    """Decodes one record: a pickled ``Data`` object of any PyTorch Geometric generation, or a pickled dictionary.

    Args:
        payload: the pickle, protocol 2 to 5.
        where: file and record, for error messages.

    Returns:
        The attributes by their stored names (``pos``, ``force``, ``y``, …). Tensors and arrays are NumPy arrays of
        the stored type that own their memory; everything else is a number, text, None, or a list, tuple or dictionary
        of such.

    Raises:
        UnsafePickleError: the pickle names a class or function that is not on the list; nothing of it was executed.
        RawFileError: the payload is damaged or no record.
    """
    try:
        known = _TEMPLATES.decode(payload, where)
        if known is not None:
            return known
        attributes = record_attributes(_run(payload, where), where)
        record: Mapping[str, Any] = plain_value(attributes, where, Budget(len(payload)))
    except RawFileError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise _undecodable(where, error) from error
    _TEMPLATES.learn(payload, where)
    return record


def load_value(payload: bytes, *, where: str) -> Any:
    """Decodes a pickle of plain values, such as the count under ``length``; rules and errors of :func:`load_record`."""
    value = _run(payload, where)
    try:
        return plain_value(value, where, Budget(len(payload)))
    except RawFileError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise _undecodable(where, error) from error


def _run(payload: bytes, where: str) -> object:
    machine = PickleMachine(payload, where, table=ALLOWED)
    value = machine.run()
    if machine.position != len(payload):
        raise RawFileError(f"{where}: damaged pickle: {len(payload) - machine.position} bytes follow its end")
    return value


def _undecodable(where: str, error: Exception) -> RawFileError:
    return RawFileError(f"{where}: the record cannot be decoded: {error}")
