"""The checksum of all our files: CRC-32C, as Zarr uses it."""

from __future__ import annotations

import google_crc32c
import numpy as np


def crc32c(payload: bytes | memoryview) -> int:
    """CRC-32C of bytes, without a copy of them."""
    # The C function takes bytes and arrays, but no memoryview.
    value: int = google_crc32c.value(np.asarray(payload) if isinstance(payload, memoryview) else payload)
    return value
