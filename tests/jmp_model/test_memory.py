"""Memory of a process that has called keep_freed_memory; in one of its own, as it cannot be undone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource, sys
import torch
from jmp_model.memory import keep_freed_memory

assert keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(int(sys.argv[1])) for _ in range(8)]
    del blocks
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")


def last_faults(numbers: int) -> int:
    command = [sys.executable, "-c", FAULTS, str(numbers)]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout)


@pytest.mark.parametrize("numbers", [1 << 20, 1 << 24], ids=["4 MiB", "64 MiB"])
def test_blocks_that_were_freed_are_not_taken_from_the_system_again(numbers: int) -> None:
    """Eight blocks at a time; the larger ones are beyond what glibc ever puts on its heap by itself."""
    pages = 8 * 4 * numbers / os.sysconf("SC_PAGE_SIZE")
    assert last_faults(numbers) < 0.05 * pages
