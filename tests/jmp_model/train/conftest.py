from __future__ import annotations

from pathlib import Path

import pytest

from tests.jmp_model.train.small_runs import write_mixture


@pytest.fixture(scope="session")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixture file of two small data sets."""
    return write_mixture(tmp_path_factory.mktemp("data"))
