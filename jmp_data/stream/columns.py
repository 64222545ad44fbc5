"""Which columns a batch holds, under which key, and in which type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError
from jmp_data.mixture import Mixture
from jmp_data.schema.fields import GEOMETRY_FIELDS, Field

BATCH_KEYS = {"positions": "pos"}
"""The one name that differs: torch_geometric transforms look for `pos`."""

WIDENED = ("atomic_numbers", "tags")
"""Bytes on disk, int64 in a batch: torch takes a uint8 index for a mask."""

OWN_KEYS = ("natoms", "batch", "ptr", "dataset_index", "structure_index")


@dataclass(frozen=True)
class BatchColumn:
    """One field of the batch.

    Attributes:
        field: its entry in the field table.
        present: which data sets of the mixture have it; the others give `field.missing_value`.
    """

    field: Field
    present: tuple[bool, ...]

    @property
    def key(self) -> str:
        """Name in the batch."""
        return BATCH_KEYS.get(self.field.name, self.field.name)

    @property
    def dtype(self) -> npt.DTypeLike:
        """Type in the batch."""
        return np.int64 if self.field.name in WIDENED else self.field.dtype


def batch_columns(mixture: Mixture, targets: Sequence[str] | None = None) -> tuple[BatchColumn, ...]:
    """The columns of a batch: the geometry, and the targets that any data set of the mixture has.

    Args:
        mixture: what is read.
        targets: only these targets; all by default.

    Raises:
        ManifestError: no data set has a target that was asked for, or two disagree about its type or shape.
    """
    schemas = [member.dataset.schema for member in mixture]
    found: dict[str, Field] = {}
    for member, schema in zip(mixture, schemas, strict=True):
        for field in schema.targets:
            known = found.setdefault(field.name, field)
            if (known.level, known.dtype, known.shape) != (field.level, field.dtype, field.shape):
                raise ManifestError(
                    f"target {field.name} of data set {member.name} is {field.dtype}{field.shape} per {field.level}, "
                    f"elsewhere {known.dtype}{known.shape} per {known.level}; rename one of them"
                )
    unknown = sorted(set(targets or ()) - set(found))
    if unknown:
        raise ManifestError(f"no data set of the mixture has a target {', '.join(unknown)}; there are {sorted(found)}")
    clash = sorted(set(found) & {*OWN_KEYS, "pos", "edge_index"})
    if clash:
        raise ManifestError(f"target {', '.join(clash)} has the name of a batch field; rename it when building")
    chosen = [field for name, field in found.items() if targets is None or name in targets]
    return tuple(
        BatchColumn(field, tuple(field.name in schema for schema in schemas)) for field in (*GEOMETRY_FIELDS, *chosen)
    )
