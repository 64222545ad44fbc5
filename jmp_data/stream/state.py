"""What a stream remembers: where it stands, and what the order that it stands in was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jmp_data.errors import StateMismatchError

STATE_VERSION = 1
_POSITION = ("epoch", "step", "position")


@dataclass(frozen=True)
class StreamPosition:
    """A place between two global batches.

    Attributes:
        epoch: 0, 1, ...
        step: global batches of the epoch that lie behind.
        position: structures of the epoch that lie behind, over all ranks.
    """

    epoch: int = 0
    step: int = 0
    position: int = 0


def pack_state(position: StreamPosition, identity: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-able state of a few hundred bytes."""
    return {"version": STATE_VERSION, **{name: getattr(position, name) for name in _POSITION}, **identity}


def unpack_state(state: Mapping[str, Any], identity: Mapping[str, Any]) -> StreamPosition:
    """The position in a state, if the state belongs to this stream.

    Raises:
        StateMismatchError: it does not; the message lists what differs.
    """
    if state.get("version") != STATE_VERSION:
        raise StateMismatchError(
            f"stream state has version {state.get('version')}, this code reads {STATE_VERSION}; "
            "it is not a stream state or was written by another release"
        )
    # A state may have been through JSON, where tuples are lists.
    mine = json.loads(json.dumps(identity))
    saved = {name: value for name, value in state.items() if name != "version" and name not in _POSITION}
    differences = _differences(json.loads(json.dumps(saved)), mine)
    if differences:
        raise StateMismatchError(
            f"saved stream state belongs to another stream: {'; '.join(differences)}. Restore these, or start anew "
            "without the state"
        )
    try:
        return StreamPosition(*(int(state[name]) for name in _POSITION))
    except (KeyError, TypeError, ValueError) as error:
        raise StateMismatchError(f"stream state has no valid position: {error}") from error


def _differences(saved: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in [*mine, *(name for name in saved if name not in mine)]:
        label, old, new = f"{prefix}{name.replace('_', ' ')}", saved.get(name), mine.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, "data set ")
        elif old != new:
            found.append(f"{label} was {_shown(old)}, now {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[1]} samples with digest {value[0]}"
    return "absent" if value is None else str(value)
