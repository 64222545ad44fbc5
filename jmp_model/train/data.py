"""From a mixture to what the trainer reads: normalisers, loss weights, training and validation streams with graphs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jmp_data import Mixture, ShardDataset, StreamLoader, open_dataset
from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.graphs import MOLECULE, PERIODIC, GraphSettings
from jmp_data.mixture import Member, Subset
from jmp_data.stream.edges import GraphChoice, GraphPlace
from jmp_model.train.config import DataSettings, GraphEntry, TargetSettings
from jmp_model.train.losses import LossWeights
from jmp_model.train.targets import TaskNormalizer

VALIDATION_SPLITS = ("val", "val_id")
LABELS = ("energy", "forces")


def check_labels(dataset: ShardDataset, name: str) -> None:
    """Refuse a data set that cannot teach energies and forces.

    Raises:
        ManifestError: it has no energies or no forces.
    """
    missing = [label for label in LABELS if label not in dataset.schema.names]
    if missing:
        raise ManifestError(
            f"data set {name} at {dataset.path} has no {' and no '.join(missing)}; pre-training needs both. "
            "Leave it out of the mixture"
        )


def task_normalizer(member: Member, settings: TargetSettings) -> TaskNormalizer:
    """References and scales of one data set, from the manifest of its training split.

    Raises:
        ManifestError: the manifest does not carry the constants that the recipe asks for.
    """
    from ase.data import atomic_numbers

    references = member.dataset.references
    fitted: Mapping[str, Any] = references.get("fitted") or {}
    constants: Mapping[str, Any] = references.get(settings.references) or {}
    energy_std = constants.get("energy_std")
    force_std = constants.get("force_rms", constants.get("force_std"))
    # The published constants come without their reference files; those are fitted then.
    linear = constants.get("linear_reference", fitted.get("linear_reference"))
    if energy_std is None or force_std is None or linear is None:
        raise ManifestError(
            f"data set {member.name} at {member.dataset.path}: its manifest has no {settings.references} energy_std, "
            "force_rms and linear_reference; build it again, or choose targets.references=fitted"
        )
    return TaskNormalizer(
        task=member.name,
        reference={atomic_numbers[symbol]: float(value) for symbol, value in linear.items()},
        energy_std=float(energy_std),
        force_std=float(force_std),
        origin=f"{settings.references}, {member.dataset.name}/{member.dataset.split}",
    )


def loss_weights(mixture: Mixture, settings: TargetSettings) -> LossWeights:
    """λ of each task, in mixture order.

    Raises:
        ManifestError: a weight names a task that is not in the mixture, unless it is one of the published four.
    """
    published = TargetSettings().force_weights
    unknown = sorted(set(settings.force_weights) - set(mixture.names) - set(published))
    if unknown:
        raise ManifestError(
            f"targets.force_weights names {', '.join(unknown)}; the mixture holds {', '.join(mixture.names)}"
        )
    force = [settings.force_weights.get(member.name, mean_atoms(member.dataset)) for member in mixture]
    energy = [settings.energy_weight] * len(mixture)
    return LossWeights(torch.tensor(energy), torch.tensor(force), settings.force_loss)


def mean_atoms(dataset: ShardDataset) -> float:
    """Mean number of atoms of the structures of a split."""
    return dataset.manifest.num_atoms / max(1, dataset.manifest.num_structures)


def graph_settings(mixture: Mixture, entries: Mapping[str, GraphEntry]) -> GraphChoice:
    """What the stream should build: "auto", or settings for every data set if the recipe names any.

    Raises:
        ManifestError: an entry names a data set that is not in the mixture, unless it is one of the published four.
    """
    unknown = sorted(set(entries) - set(mixture.names) - set(TargetSettings().force_weights))
    if unknown:
        raise ManifestError(f"data.graphs names {', '.join(unknown)}; the mixture holds {', '.join(mixture.names)}")
    if not entries:
        return "auto"
    found = {}
    for member in mixture:
        entry = entries.get(member.name)
        if entry is not None:
            found[member.name] = GraphSettings.from_main_count(entry.max_neighbors, entry.cutoff)
        else:
            found[member.name] = PERIODIC if np.any(member.dataset[0].pbc) else MOLECULE
    return found


def place_of_graphs(settings: DataSettings, device: torch.device) -> GraphPlace:
    """Where a run builds its graphs."""
    if settings.graphs_on == "auto":
        return "device" if device.type == "cuda" else "workers"
    return settings.graphs_on


def training_stream(
    mixture: Mixture,
    settings: DataSettings,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    graphs_on: GraphPlace = "workers",
) -> StreamLoader:
    """The training batches of one rank, with graphs and edge dropout.

    Raises:
        ManifestError: the global batch cannot be shared evenly, or is larger than an epoch.
    """
    if settings.batch_size % world_size:
        raise ManifestError(
            f"data.batch_size is {settings.batch_size} structures over all ranks; "
            f"{world_size} ranks cannot share it evenly"
        )
    return StreamLoader(
        mixture,
        settings.batch_size // world_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        num_workers=settings.num_workers,
        targets=LABELS,
        graphs=graph_settings(mixture, settings.graphs),
        graphs_on=graphs_on,
        edge_dropout=settings.edge_dropout,
    )


@dataclass(frozen=True)
class ValidationSet:
    """One validation split.

    Attributes:
        task: index of its task.
        name: name of the task.
        dataset: the open split.
    """

    task: int
    name: str
    dataset: ShardDataset


def validation_sets(mixture: Mixture, folders: Sequence[str] | None) -> list[ValidationSet]:
    """Find the validation split of each data set.

    Args:
        mixture: what is trained on.
        folders: splits, matched to tasks by data set name; None looks beside each training split.

    Raises:
        ManifestError: a split cannot be found or belongs to no data set of the mixture.
    """
    if folders is None:
        found = [ValidationSet(task, m.name, _sibling_split(m)) for task, m in enumerate(mixture)]
    else:
        opened = [open_dataset(folder) for folder in folders]
        found = [ValidationSet(*_task_of(mixture, dataset), dataset) for dataset in opened]
    for entry in found:
        check_labels(entry.dataset, entry.name)
    return found


def _sibling_split(member: Member) -> ShardDataset:
    parent = str(member.dataset.path).rstrip("/").rpartition("/")[0]
    for split in VALIDATION_SPLITS:
        try:
            return open_dataset(f"{parent}/{split}")
        except MissingFileError:
            continue
    raise ManifestError(
        f"data set {member.name}: no validation split ({' or '.join(VALIDATION_SPLITS)}) in {parent}; build one, name "
        "folders (--set val=[FOLDER,...]), or train without validation (--set val=[])"
    )


def _task_of(mixture: Mixture, dataset: ShardDataset) -> tuple[int, str]:
    for task, member in enumerate(mixture):
        if dataset.name in (member.name, member.dataset.name):
            return task, member.name
    raise ManifestError(
        f"{dataset.path} is a split of {dataset.name}, which the mixture does not hold: {', '.join(mixture.names)}"
    )


def validation_stream(
    entry: ValidationSet,
    graphs: Mapping[str, GraphEntry],
    *,
    batch_size: int,
    max_structures: int | None,
    rank: int = 0,
    world_size: int = 1,
    graphs_on: GraphPlace = "workers",
) -> StreamLoader:
    """Each structure of a validation split once, in stored order, without edge dropout."""
    subsets = None if max_structures is None else {entry.name: Subset(first=max_structures)}
    mixture = Mixture.from_datasets({entry.name: entry.dataset}, temperature=1.0, subsets=subsets)
    own = {name: value for name, value in graphs.items() if name == entry.name}
    return StreamLoader(
        mixture,
        batch_size,
        rank=rank,
        world_size=world_size,
        shuffle=False,
        targets=LABELS,
        graphs=graph_settings(mixture, own),
        graphs_on=graphs_on,
    )


def split_batch(batch: Any, parts: int) -> list[Any]:
    """Cut a batch, with graphs or without, into parts of nearly equal numbers of structures.

    Args:
        batch: `torch_geometric` batch as the training stream gives it.
        parts: how many; fewer come back where there are fewer structures.
    """
    count = batch.natoms.shape[0]
    parts = min(parts, count)
    if parts == 1:
        return [batch]
    bounds = [count * part // parts for part in range(parts + 1)]
    return [_cut(batch, first, last) for first, last in itertools.pairwise(bounds)]


def _cut(batch: Any, first: int, last: int) -> Any:
    from torch_geometric.data import Batch

    ptr = batch.ptr.tolist()
    atoms = slice(ptr[first], ptr[last])
    fields: dict[str, Tensor] = {
        "batch": batch.batch[atoms] - first,
        "ptr": batch.ptr[first : last + 1] - ptr[first],
    }
    for key, value in batch.to_dict().items():
        if key.endswith("_edge_index"):
            offsets = key.replace("_edge_index", "_cell_offsets")
            inside = (value[1] >= ptr[first]) & (value[1] < ptr[last])
            fields[key] = value[:, inside] - ptr[first]
            fields[offsets] = batch[offsets][inside]
        elif key not in fields and not key.endswith("_cell_offsets") and torch.is_tensor(value):
            # Where there are as many atoms as structures, both slices are the same.
            fields[key] = value[atoms] if value.shape[0] == ptr[-1] else value[first:last]
    return Batch(**fields)
