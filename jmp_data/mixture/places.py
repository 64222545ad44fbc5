"""Where the members of a mixture lie, as a user writes it, and under which names they take part.

A place is the folder or URL of one split; a folder of splits, which means its train split; or a folder of data sets,
which means the train split of each. `NAME=PLACE` gives a data set another name. Without one it is called as its
manifest says, and where that is the same for several, `name/split`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jmp_data.errors import ManifestError, MissingFileError

if TYPE_CHECKING:
    from jmp_data.shards.dataset import ShardDataset

DEFAULT_SPLIT = "train"
_NAMED = re.compile(r"([A-Za-z0-9][\w.:+-]*)=(.+)")


def open_places(places: Sequence[str]) -> dict[str, ShardDataset]:
    """Open the data sets at some places.

    Args:
        places: folders and URLs, with `NAME=` before them or without.

    Returns:
        Name → data set, in the order of the places.

    Raises:
        ManifestError: nothing there, several splits to choose from, or two data sets of one name.
    """
    found: list[tuple[str | None, ShardDataset]] = []
    for text in places:
        name, place = _split_name(text)
        datasets = _open_place(place)
        if name is not None and len(datasets) > 1:
            raise ManifestError(f"{place} holds {len(datasets)} data sets, and only one can be called {name}")
        found += [(name, dataset) for dataset in datasets]
    plain = Counter(dataset.name for name, dataset in found if name is None)
    named: dict[str, ShardDataset] = {}
    for given, dataset in found:
        name = given or (dataset.name if plain[dataset.name] == 1 else f"{dataset.name}/{dataset.split}")
        if name in named:
            raise ManifestError(
                f"{named[name].path} and {dataset.path} would both be called {name}; leave one out or write "
                "NAME=PLACE for it"
            )
        named[name] = dataset
    return named


def _split_name(text: str) -> tuple[str | None, str]:
    match = _NAMED.fullmatch(text)
    if match is None or Path(text).exists():
        return None, text
    return match[1], match[2]


def _open_place(place: str) -> list[ShardDataset]:
    from jmp_data.shards.dataset import open_dataset

    try:
        paths: list[str | Path] = [place] if "://" in place else [*_splits_to_mix(Path(place))]
        return [open_dataset(path) for path in paths]
    except MissingFileError as error:
        raise ManifestError(str(error)) from error


def _splits_to_mix(folder: Path) -> list[Path]:
    """One split of each data set at or below a folder."""
    from jmp_data.shards.integrity import find_datasets
    from jmp_data.shards.manifest import MANIFEST_NAME

    for path in (folder, folder / DEFAULT_SPLIT):
        if (path / MANIFEST_NAME).exists():
            return [path]
    splits: dict[Path, list[str]] = {}
    for path in find_datasets(folder):
        splits.setdefault(path.parent, []).append(path.name)
    for parent, names in splits.items():
        if DEFAULT_SPLIT not in names and len(names) > 1:
            raise ManifestError(f"{parent} holds {', '.join(names)} and no {DEFAULT_SPLIT}; name the split to mix")
    return [parent / (DEFAULT_SPLIT if DEFAULT_SPLIT in names else names[0]) for parent, names in splits.items()]
