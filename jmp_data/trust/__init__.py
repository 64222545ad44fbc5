"""Whether records that obey the schema can be believed: physical checks with reason codes and evidence.

What is certainly broken is set aside; everything else that looks wrong is stored and flagged. The names below load on
first use, so reading a manifest compiles nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jmp_data.trust.flags import Flag, flagged_rows, read_flags
    from jmp_data.trust.force_sign import ForceSignEvidence, compare_force_sign
    from jmp_data.trust.records import check_records
    from jmp_data.trust.thresholds import TrustThresholds

_HOMES = {
    "Flag": "jmp_data.trust.flags",
    "ForceSignEvidence": "jmp_data.trust.force_sign",
    "TrustThresholds": "jmp_data.trust.thresholds",
    "check_records": "jmp_data.trust.records",
    "compare_force_sign": "jmp_data.trust.force_sign",
    "flagged_rows": "jmp_data.trust.flags",
    "read_flags": "jmp_data.trust.flags",
}

__all__ = [
    "Flag",
    "ForceSignEvidence",
    "TrustThresholds",
    "check_records",
    "compare_force_sign",
    "flagged_rows",
    "read_flags",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jmp_data.trust' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
