"""Brings the state of checkpoints that older versions of this code wrote up to date: the one place for that.

When the format changes, `FORMAT_VERSION` in `jmp_model.train.checkpoint` goes up by one, and `UPGRADES` gets a function
that turns a state of the version before into one of the new version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jmp_data.errors import CheckpointError

State = dict[str, Any]

UPGRADES: Mapping[int, Callable[[State], State]] = {}
"""Version → function that makes a state of that version one of the next."""


def upgrade_state(state: State, *, to: int, where: Path) -> State:
    """A state of version `to`.

    Args:
        state: content of `state.json`, of any version.
        to: version that the code reads.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: the version is newer, or so old that no upgrade is known.
    """
    version = state.get("version")
    if not isinstance(version, int):
        raise CheckpointError(f"{where}: its state has no version; it is damaged")
    if version > to:
        raise CheckpointError(f"{where}: format {version} is newer than this code; upgrade jmp-data")
    for number in range(version, to):
        if number not in UPGRADES:
            raise CheckpointError(
                f"{where}: format {version} cannot be read any more; read it with the code that wrote it"
            )
        state = {**UPGRADES[number](state), "version": number + 1}
    return state
