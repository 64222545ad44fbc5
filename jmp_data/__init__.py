"""From raw atomistic data sets to a resumable, temperature-mixed training stream.

The names below load on first use, so `import jmp_data` costs little and reading shards needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jmp_data.kernel_cache import ensure_kernel_cache

if TYPE_CHECKING:
    from jmp_data.graphs import radius_graph
    from jmp_data.mixture import Mixture
    from jmp_data.schema import Block, Structure
    from jmp_data.shards import ShardDataset, open_dataset, write_dataset
    from jmp_data.stream import StreamLoader

__version__ = "0.1.0"

_HOMES = {
    "Block": "jmp_data.schema",
    "Mixture": "jmp_data.mixture",
    "ShardDataset": "jmp_data.shards",
    "StreamLoader": "jmp_data.stream",
    "Structure": "jmp_data.schema",
    "open_dataset": "jmp_data.shards",
    "radius_graph": "jmp_data.graphs",
    "write_dataset": "jmp_data.shards",
}

__all__ = [
    "Block",
    "Mixture",
    "ShardDataset",
    "StreamLoader",
    "Structure",
    "open_dataset",
    "radius_graph",
    "write_dataset",
]

ensure_kernel_cache()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jmp_data' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
