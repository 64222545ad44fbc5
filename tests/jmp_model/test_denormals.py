"""Denormal numbers count as zero inside the context, and only there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from jmp_model.denormals import denormals_are_flushed, flushed_denormals

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot flush")


def test_only_inside_and_also_after_an_error() -> None:
    assert not denormals_are_flushed()
    with flushed_denormals(), flushed_denormals():
        assert denormals_are_flushed()
    with pytest.raises(ValueError, match="stop"), flushed_denormals():
        raise ValueError("stop")
    assert not denormals_are_flushed()


def test_threads_that_begin_inside_flush_too() -> None:
    program = """
import torch
from jmp_model.denormals import flushed_denormals
torch.set_num_threads(2)
with flushed_denormals():
    print(int((torch.full((1 << 20,), 1e-38) * 0.1).count_nonzero()))
"""
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "0"
