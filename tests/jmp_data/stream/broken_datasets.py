"""Data sets that misbehave in worker processes. They live in a module of their own so that workers can import them."""

from __future__ import annotations

import os
import signal

from jmp_data.errors import ShardError
from tests.jmp_data.stream.memory_dataset import MemoryDataset


class DamagedDataset(MemoryDataset):
    """Block 1 cannot be read."""

    def read_block(self, index, columns=None):
        if index == 1:
            raise ShardError(f"{self.name}: array positions, block {index}: checksum does not match")
        return super().read_block(index, columns)


class DeadlyDataset(MemoryDataset):
    """Reading block 1 kills the process, as the kernel does when memory runs out."""

    def read_block(self, index, columns=None):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_block(index, columns)
