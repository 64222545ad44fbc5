"""Put the four graphs on a `torch_geometric.data.Batch`, wherever its tensors live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs.batched import batch_four_graphs
from jmp_data.graphs.dropout import draw_seeds
from jmp_data.graphs.settings import GRAPH_NAMES, MOLECULE, PERIODIC, GraphSettings

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Batch


def attach_graphs(
    batch: Batch,
    settings: GraphSettings | Sequence[GraphSettings] | None = None,
    *,
    edge_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Add `<graph>_edge_index` (2, nedges) int64 and `<graph>_cell_offsets` (nedges, 3) int32, four times.

    Distances and vectors are left to the model, which needs them differentiable.

    Args:
        batch: with pos (N, 3), cell (B, 3, 3), pbc (B, 3), natoms (B,), tags (N,), and dataset_index (B,) where
            `settings` is a sequence.
        settings: for all structures; or a sequence, one for each data set of the mixture; or None for 12 Å where
            anything is periodic and 8 Å elsewhere.
        edge_dropout: probability of dropping an edge, 0 outside training.
        rng: source of the dropout; required with it.

    Returns:
        The same batch.

    Raises:
        InvalidStructureError: see `batch_four_graphs`.
    """
    import torch

    if batch.pos.is_cuda:
        seeds = torch.from_numpy(draw_seeds(len(batch.pbc), edge_dropout, rng))
        return attach_on_device(batch, settings, edge_dropout=edge_dropout, seeds=seeds)
    each = _settings_of_structures(batch, settings)
    graphs = batch_four_graphs(
        batch.pos.detach().numpy(),
        batch.cell.detach().numpy(),
        batch.pbc.numpy(),
        batch.natoms.numpy(),
        batch.tags.numpy(),
        each,
        edge_dropout=edge_dropout,
        rng=rng,
    )
    for name in GRAPH_NAMES:
        edges = getattr(graphs, name)
        batch[f"{name}_edge_index"] = torch.from_numpy(edges.edge_index)
        batch[f"{name}_cell_offsets"] = torch.from_numpy(edges.cell_offsets)
    return batch


def attach_on_device(
    batch: Batch,
    settings: GraphSettings | Sequence[GraphSettings] | None = None,
    *,
    edge_dropout: float = 0.0,
    seeds: Tensor | None = None,
    names: Sequence[str] = GRAPH_NAMES,
) -> Batch:
    """The same in torch operations, on whatever device the batch is.

    Args:
        batch: as for `attach_graphs`.
        settings: as for `attach_graphs`.
        edge_dropout: as for `attach_graphs`.
        seeds: (B,) int64, required with dropout; what `draw_seeds` gives, on any device.
        names: which of the graphs.

    Returns:
        The same batch.

    Raises:
        InvalidStructureError: see `batch_four_graphs`.
    """
    from jmp_data.graphs import torch_batched

    each = _settings_of_structures(batch, settings)
    graphs = torch_batched.batch_four_graphs(
        batch.pos, batch.cell, batch.pbc, batch.natoms, batch.tags, each, edge_dropout=edge_dropout, seeds=seeds
    )
    for name in names:
        batch[f"{name}_edge_index"] = graphs[name].edge_index
        batch[f"{name}_cell_offsets"] = graphs[name].cell_offsets
    return batch


def _settings_of_structures(
    batch: Batch, settings: GraphSettings | Sequence[GraphSettings] | None
) -> GraphSettings | list[GraphSettings]:
    if isinstance(settings, GraphSettings):
        return settings
    if settings is None:
        return [PERIODIC if periodic else MOLECULE for periodic in batch.pbc.any(dim=1).tolist()]
    index = batch.dataset_index.tolist()
    if max(index) >= len(settings):
        raise InvalidStructureError(
            f"batch holds data set {max(index)} but there are graph settings for {len(settings)}", "graph_settings"
        )
    return [settings[i] for i in index]
