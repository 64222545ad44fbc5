"""Splits of a task, what must be true of them before compute is spent, and their batches with graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from jmp_data import Mixture, ShardDataset, StreamLoader, open_dataset
from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.graphs import GRAPH_NAMES, GraphSettings, batch_four_graphs, torch_batched
from jmp_data.mixture import Subset
from jmp_model.finetune.config import DataSettings
from jmp_model.finetune.tasks import GraphSpec, TaskSpec

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Splits:
    """Open splits of a task.

    Attributes:
        train, val: always there.
        test: None where there is none.
    """

    train: ShardDataset
    val: ShardDataset
    test: ShardDataset | None


def open_splits(task: TaskSpec, settings: DataSettings, fold: int | None) -> Splits:
    """Open the splits of a task and check that they hold its targets.

    Raises:
        ManifestError: a split is missing, or has no column for a target.
    """
    train, val = open_split(task, settings, "train", fold), open_split(task, settings, "val", fold)
    if train is None or val is None:
        raise ManifestError(_missing(task, settings, "train" if train is None else "val", fold))
    test = open_split(task, settings, "test", fold)
    return Splits(train, val, test)


def _missing(task: TaskSpec, settings: DataSettings, name: SplitName, fold: int | None) -> str:
    what = f"{task.name}: no {'training' if name == 'train' else 'validation'} split"
    if settings.root is None:
        return f"{what}; give data.root, the output folder of jmp-data build, or data.train and data.val"
    folder = settings.root / task.folder
    there = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    has = f"it has {', '.join(there)}" if there else "there is nothing"
    return (
        f"{what} ({task.split(name, fold)}) in {folder}, {has}; build it with jmp-data build, or name a folder with "
        f"--set data.{name}=FOLDER"
    )


def open_split(task: TaskSpec, settings: DataSettings, name: SplitName, fold: int | None) -> ShardDataset | None:
    """One split, checked; None if it is neither given nor found.

    Raises:
        ManifestError: it was given and is missing, or has no column for a target.
    """
    explicit = getattr(settings, name)
    try:
        if explicit is not None:
            dataset = open_dataset(explicit)
        elif settings.root is not None:
            dataset = open_dataset(settings.root / task.folder / task.split(name, fold))
        else:
            return None
    except MissingFileError as error:
        if explicit is not None:
            raise ManifestError(f"{task.name}: {name} split: {error}") from error
        return None
    check_columns(task, dataset)
    return dataset


def check_columns(task: TaskSpec, dataset: ShardDataset) -> None:
    """Refuse a data set without the columns that the task learns.

    Raises:
        ManifestError: names the target, the column and what the data set has.
    """
    targets = [field.name for field in dataset.schema.targets]
    for name, target in task.targets.items():
        column = task.column(name)
        if column not in targets and target.coefficient > 0.0:
            raise ManifestError(
                f"{task.name}: target {name} needs column {column}, which {dataset.path} does not have; "
                f"it has {', '.join(targets) or 'no targets'}"
            )
        if column in targets:
            level = dataset.schema[column].level
            wanted = "atom" if target.kind == "forces" else "structure"
            if level != wanted:
                raise ManifestError(
                    f"{task.name}: target {name} ({target.kind}) needs one value per {wanted}, but column "
                    f"{column} of {dataset.path} has one per {level}"
                )


def stream(
    dataset: ShardDataset,
    task: TaskSpec,
    *,
    batch_size: int,
    first: int | None = None,
    shuffle: bool,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> StreamLoader:
    """Batches of a split with the task's columns, still without graphs."""
    subsets = None if first is None else {"split": Subset(first=first)}
    mixture = Mixture.from_datasets({"split": dataset}, temperature=1.0, subsets=subsets)
    have = {field.name for field in dataset.schema.targets}
    columns = [column for column in dict.fromkeys(task.column(name) for name in task.targets) if column in have]
    return StreamLoader(
        mixture,
        batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        num_workers=num_workers,
        shuffle=shuffle,
        targets=columns,
    )


def with_graphs(batches: StreamLoader, spec: GraphSpec) -> Iterator[Any]:
    """The batches of one epoch, with the four graphs that the task asks for."""
    for batch in batches:
        yield attach(batch, spec)


def attach(batch: Any, spec: GraphSpec) -> Any:
    """Add the four graphs, built on the GPU where the batch is on one.

    How many neighbours are kept may depend on the size of a structure.
    """
    natoms = batch.natoms.tolist()
    settings: Mapping[int, GraphSettings] = {n: spec.settings(n) for n in set(natoms)}
    each = [settings[n] for n in natoms]
    return _attach_on_device(batch, each) if batch.pos.is_cuda else _attach_here(batch, each)


def _attach_on_device(batch: Any, each: Sequence[GraphSettings]) -> Any:
    graphs = torch_batched.batch_four_graphs(batch.pos, batch.cell, batch.pbc, batch.natoms, batch.tags, each)
    for name, edges in graphs.items():
        batch[f"{name}_edge_index"], batch[f"{name}_cell_offsets"] = edges.edge_index, edges.cell_offsets
    return batch


def _attach_here(batch: Any, each: Sequence[GraphSettings]) -> Any:
    graphs = batch_four_graphs(
        batch.pos.detach().numpy(),
        batch.cell.detach().numpy(),
        batch.pbc.numpy(),
        batch.natoms.numpy(),
        batch.tags.numpy(),
        each,
    )
    for name in GRAPH_NAMES:
        edges = getattr(graphs, name)
        batch[f"{name}_edge_index"] = torch.from_numpy(np.ascontiguousarray(edges.edge_index))
        batch[f"{name}_cell_offsets"] = torch.from_numpy(np.ascontiguousarray(edges.cell_offsets))
    return batch
