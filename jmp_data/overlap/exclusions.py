"""The exclusion file: which structures a mixture should leave out, in the form that `Mixture.from_datasets` reads.

It is a YAML file that maps data set names to index lists (`.npy`) beside it. An index means something in one data set
only, so the summary that lies in the same folder remembers the digest of each, and `check_exclusions` compares them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import yaml

from jmp_data.errors import ManifestError
from jmp_data.overlap.run import Overlap
from jmp_data.shards import ShardDataset
from jmp_data.shards.atomic import write_atomic

EXCLUSIONS_FILE: Final = "exclude.yaml"
SUMMARY_FILE: Final = "overlap.json"


def write_exclusions(overlap: Overlap, folder: Path) -> Path:
    """Write index lists and the YAML file that names them; data sets without a match are listed with an empty list.

    Returns:
        The YAML file.
    """
    lists: dict[str, str] = {}
    for number, dataset in enumerate(overlap.left):
        file = f"{dataset.name.replace(':', '-').replace('/', '-')}.exclude.npy"
        write_atomic(folder / file, _npy(overlap.rows_with_partner(number)))
        lists[dataset.name] = file
    partners = ", ".join(f"{dataset.name}/{dataset.split}" for dataset in overlap.right)
    text = f"# structures within {overlap.settings.near} Å of one in {partners}; for jmp-data mix --exclude\n"
    write_atomic(folder / EXCLUSIONS_FILE, (text + yaml.safe_dump(lists, sort_keys=False)).encode())
    return folder / EXCLUSIONS_FILE


def _npy(rows: npt.NDArray[np.int64]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return buffer.getvalue()


def check_exclusions(path: Path, datasets: Mapping[str, ShardDataset]) -> None:
    """Make sure that an exclusion file was written for these very data sets.

    A file without a summary beside it (one that a user wrote) cannot be checked, and passes.

    Args:
        path: the YAML file.
        datasets: name → open data set.

    Raises:
        ManifestError: a data set has changed since, or another split of it was searched.
    """
    summary = path.with_name(SUMMARY_FILE)
    if path.name != EXCLUSIONS_FILE or not summary.exists():
        return
    try:
        searched = {entry["dataset"]: entry for entry in json.loads(summary.read_text(encoding="utf-8"))["left"]}
        for name, dataset in datasets.items():
            if name in searched and searched[name]["fingerprint"] != dataset.fingerprint:
                raise ManifestError(
                    f"{path}: was made for {searched[name]['path']}, and {dataset.path} holds something else; "
                    "run jmp-data overlap again with this data set"
                )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{summary}: not a summary of jmp-data overlap ({error})") from error
