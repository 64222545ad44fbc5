"""A mixture: named data sets, which of their structures take part, and how often each appears in an epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.mixture.rule import DEFAULT_TEMPERATURE, MixingRule
from jmp_data.mixture.selection import RowSelection
from jmp_data.mixture.subset import Subset, read_index_list, select_rows

if TYPE_CHECKING:
    from jmp_data.shards.dataset import ShardDataset

IndexList = str | Path | Sequence[int] | np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Member:
    """One data set of a mixture.

    Attributes:
        name: its name in the mixture.
        dataset: the open data set.
        selection: which of its structures take part.
        probability: chance that a sample of the epoch comes from it, by the rule.
        repeats: visits of one structure per epoch, by the rule.
        samples: whole samples per epoch; structure i (of those that take part) is visited
            samples // size times, and once more if i < samples % size.
    """

    name: str
    dataset: ShardDataset
    selection: RowSelection
    probability: float
    repeats: float
    samples: int

    @property
    def size(self) -> int:
        """Structures that take part."""
        return self.selection.size


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data sets and their share of an epoch. Make it with `from_datasets` or `load`.

    Attributes:
        members: the data sets, in the order that `dataset_index` counts.
        rule: how their shares were worked out.
    """

    members: tuple[Member, ...]
    rule: MixingRule

    @classmethod
    def from_datasets(
        cls,
        datasets: Mapping[str, ShardDataset | str | Path],
        *,
        temperature: float | None = None,
        weights: Mapping[str, float] | None = None,
        repeats: Mapping[str, float] | None = None,
        subsets: Mapping[str, Subset] | None = None,
        exclusions: Mapping[str, IndexList] | str | Path | None = None,
    ) -> Mixture:
        """Mix data sets; at most one of temperature (2 by default), weights and repeats.

        Args:
            datasets: name → open data set, folder or URL; the order is kept.
            temperature: p_i ∝ (n_i / N)^(1/temperature).
            weights: name → relative weight of a sample, in place of the temperature.
            repeats: name → visits of each structure per epoch.
            subsets: name → part of that data set.
            exclusions: name → structure indices that stay out, as an array or a `.npy`, text or YAML file;
                or one YAML file that maps names to such lists or files.

        Raises:
            ManifestError: a data set is missing or empty, or a setting names one that is not in the mixture.
        """
        if not datasets:
            raise ManifestError("a mixture needs at least one data set")
        if temperature is None and weights is None and repeats is None:
            temperature = DEFAULT_TEMPERATURE
        rule = MixingRule(temperature=temperature, weights=weights, repeats=repeats)
        excluded = _exclusion_lists(exclusions)
        for what, named in (("subsets", subsets or {}), ("exclusions", excluded)):
            unknown = sorted(set(named) - set(datasets))
            if unknown:
                raise ManifestError(f"{what} name {', '.join(unknown)}; the mixture holds {', '.join(datasets)}")
        opened = {name: _open(name, dataset) for name, dataset in datasets.items()}
        selections = {
            name: select_rows(dataset, subset=(subsets or {}).get(name), exclude=excluded.get(name), name=name)
            for name, dataset in opened.items()
        }
        return cls.from_selections(opened, selections, rule)

    @classmethod
    def from_selections(
        cls, datasets: Mapping[str, ShardDataset], selections: Mapping[str, RowSelection], rule: MixingRule
    ) -> Mixture:
        """Mix open data sets whose selections are already resolved; both mappings share their keys."""
        shares = rule.shares({name: selections[name].size for name in datasets})
        members = tuple(
            Member(name, dataset, selections[name], float(p), float(r), int(s))
            for (name, dataset), p, r, s in zip(
                datasets.items(), shares.probabilities, shares.repeats, shares.samples, strict=True
            )
        )
        return cls(members, rule)

    @classmethod
    def single(cls, dataset: ShardDataset | str | Path) -> Mixture:
        """A mixture of one data set under its own name, each structure once an epoch."""
        opened = _open("", dataset)
        return cls.from_datasets({opened.name: opened}, temperature=1.0)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    @property
    def names(self) -> tuple[str, ...]:
        """Data set names; `dataset_index` of a batch counts in this order."""
        return tuple(member.name for member in self.members)

    @property
    def probabilities(self) -> dict[str, float]:
        """Name → chance that a sample of the epoch comes from that data set."""
        return {member.name: member.probability for member in self.members}

    @property
    def repeats(self) -> dict[str, float]:
        """Name → visits of each structure per epoch."""
        return {member.name: member.repeats for member in self.members}

    @property
    def samples_per_epoch(self) -> dict[str, int]:
        """Name → samples per epoch."""
        return {member.name: member.samples for member in self.members}

    @property
    def epoch_size(self) -> int:
        """Samples per epoch of all data sets together."""
        return sum(member.samples for member in self.members)

    @property
    def num_structures(self) -> int:
        """Structures that take part, each counted once."""
        return sum(member.size for member in self.members)

    def table(self) -> list[dict[str, Any]]:
        """One row a data set: structures, their share of all structures, probability, repeats, samples per epoch."""
        total = self.num_structures
        return [
            {
                "dataset": member.name,
                "structures": member.size,
                "share": member.size / total,
                "probability": member.probability,
                "repeats": member.repeats,
                "samples": member.samples,
            }
            for member in self.members
        ]

    @property
    def fingerprint(self) -> str:
        """Digest of names, contents, selections and shares: equal fingerprints give equal streams."""
        parts = [[m.name, m.dataset.fingerprint, m.selection.fingerprint, m.samples] for m in self.members]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the YAML file that `load` and `jmp train pretrain --mix` read.

        Data sets beside the file, below it or in its parent folder are named by relative paths, so that all can move
        together; others by absolute ones. Index lists go beside the file, as `<file>.<data set>.exclude.npy` and
        `.include.npy`.

        Raises:
            ManifestError: a data set has no path.
        """
        from jmp_data.mixture.file import write_mixture

        return write_mixture(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Mixture:
        """Open what `save` wrote.

        Raises:
            ManifestError: the file is malformed, names a data set that does not exist, or a data set has changed since.
        """
        from jmp_data.mixture.file import read_mixture

        return read_mixture(Path(path))


def _open(name: str, dataset: ShardDataset | str | Path) -> ShardDataset:
    if not isinstance(dataset, str | Path):
        return dataset
    from jmp_data.shards.dataset import open_dataset

    try:
        return open_dataset(dataset)
    except MissingFileError as error:
        raise ManifestError(f"data set {name or dataset}: {error}") from error


def _exclusion_lists(exclusions: Mapping[str, IndexList] | str | Path | None) -> dict[str, np.ndarray[Any, Any]]:
    if exclusions is None:
        return {}
    folder = Path()
    if isinstance(exclusions, str | Path):
        import yaml

        folder = Path(exclusions).parent
        try:
            loaded = yaml.safe_load(Path(exclusions).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ManifestError(f"{exclusions}: exclusion file cannot be read: {error}") from error
        if not isinstance(loaded, dict):
            raise ManifestError(f"{exclusions}: expected a mapping of data set names to index lists or files")
        exclusions = loaded
    return {
        name: read_index_list(folder / rows if isinstance(rows, str | Path) else rows, name)
        for name, rows in exclusions.items()
    }
