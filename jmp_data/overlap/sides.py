"""Which data sets stand on the two sides, from the folders that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jmp_data.errors import ManifestError
from jmp_data.shards import ShardDataset, open_dataset
from jmp_data.shards.integrity import find_datasets
from jmp_data.shards.manifest import MANIFEST_NAME

TRAIN = "train"


def open_sides(
    left: Sequence[str], right: Sequence[str]
) -> tuple[list[ShardDataset], list[ShardDataset], list[ShardDataset]]:
    """Open both sides.

    A folder with several splits means `train` on the left, as it does for `jmp-data mix`, and all splits on the right.
    A data set that is on both sides stays on the left only.

    Args:
        left: folders or URLs of pre-training data.
        right: folders or URLs of downstream data.

    Returns:
        Data sets of the left, of the right, and those taken off the right.

    Raises:
        MissingFileError: no data set at a folder.
        ManifestError: two data sets of the left share a name, so that no exclusion file could tell them apart.
    """
    first = [dataset for folder in left for dataset in _open_all(folder, only_train=True)]
    names: dict[str, str] = {}
    for dataset in first:
        if dataset.name in names:
            raise ManifestError(
                f"{dataset.path}: data set {dataset.name} is there already ({names[dataset.name]}); "
                "compare one split at a time"
            )
        names[dataset.name] = dataset.path
    known = {dataset.fingerprint for dataset in first}
    second: dict[str, ShardDataset] = {}
    for folder in right:
        for dataset in _open_all(folder, only_train=False):
            second.setdefault(dataset.path, dataset)
    others = [dataset for dataset in second.values() if dataset.fingerprint not in known]
    return first, others, [dataset for dataset in second.values() if dataset.fingerprint in known]


def _open_all(folder: str, *, only_train: bool) -> list[ShardDataset]:
    if "://" in folder or (Path(folder) / MANIFEST_NAME).exists():
        return [open_dataset(folder)]
    paths = find_datasets(folder)
    if only_train:
        with_train = {path.parent for path in paths if path.name == TRAIN}
        paths = [path for path in paths if path.name == TRAIN or path.parent not in with_train]
    return [open_dataset(path) for path in paths]
