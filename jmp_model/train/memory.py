"""Running out of a GPU's memory, as one line that says what helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jmp_data.errors import JmpDataError


class DeviceMemoryError(JmpDataError, MemoryError):
    """A batch does not fit into the memory of the device."""


@contextmanager
def memory_hint(step: int, *, structures: int, micro_batches: int) -> Iterator[None]:
    """Turn an out-of-memory error inside into one that names the settings to change.

    Args:
        step: for the message.
        structures: of a global batch.
        micro_batches: parts that each rank cuts its share into.

    Raises:
        DeviceMemoryError: the device ran out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"step {step}: the device's memory is too small for {structures} structures in {micro_batches} "
            f"part{'s' * (micro_batches > 1)}; --set data.micro_batches={min(structures, 2 * micro_batches)} computes "
            "the same in more parts, --set hardware.recompute=true keeps less of each, --set data.batch_size=... takes "
            "smaller steps"
        ) from error
