"""How data are stored: columnar ragged blocks in Zarr v3 shards or WebDataset tars, one manifest per split."""

from jmp_data.shards.dataset import ShardDataset, open_dataset
from jmp_data.shards.manifest import DatasetManifest
from jmp_data.shards.write_dataset import write_dataset

__all__ = ["DatasetManifest", "ShardDataset", "open_dataset", "write_dataset"]
