"""Where the reference material lies beside the checkout, and the marker for tests that need it."""

from __future__ import annotations

from pathlib import Path

import pytest

_CANDIDATE = Path(__file__).resolve().parents[2] / "shared"
SHARED: Path | None = _CANDIDATE if (_CANDIDATE / "parity").is_dir() else None
needs_shared = pytest.mark.skipif(SHARED is None, reason="reference material (../shared) is not beside this checkout")
