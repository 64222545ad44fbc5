"""Whole models: embedding, backbone and heads, for pre-training and for fine-tuning.

Both read a `ModelInputs` or a `torch_geometric` batch that carries its four graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jmp_data.errors import InvalidStructureError
from jmp_model.gemnet_oc.backbone import BackboneOutput, GemNetOC
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.fused import plain_layers
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.topology import Topology
from jmp_model.heads.force_scale import ForceScale
from jmp_model.heads.pretraining import OwnRows, PretrainingHeads
from jmp_model.heads.readout import gradient_forces
from jmp_model.presets import PRETRAINING_TASKS


class Predictions(NamedTuple):
    """Raw outputs of the pre-training heads, in the normalised units of each task.

    Attributes:
        energy: (B, tasks).
        forces: (N, 3, tasks); None for a model without force branch.
    """

    energy: Tensor
    forces: Tensor | None


class AtomEmbedding(nn.Module):
    """One learned vector per element."""

    def __init__(self, num_elements: int, features: int) -> None:
        super().__init__()
        self.atom_embedding = nn.Embedding(num_elements, features)

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """Map (N,) atomic numbers from 1 on to (N, A).

        Raises:
            InvalidStructureError: there is no embedding for an element (checked on the CPU only, where it is free).
        """
        if not atomic_numbers.is_cuda and atomic_numbers.numel():
            low, high = (int(z) for z in atomic_numbers.aminmax())
            if low < 1 or high > self.atom_embedding.num_embeddings:
                raise InvalidStructureError(
                    f"atomic number {low if low < 1 else high}: the model has embeddings for 1 to "
                    f"{self.atom_embedding.num_embeddings}"
                )
        h: Tensor = self.atom_embedding(atomic_numbers - 1)
        return h


class _AtomisticModel(nn.Module):
    """Embedding and backbone, shared by both kinds of models."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = AtomEmbedding(config.num_elements, config.emb_size_atom)
        self.backbone = GemNetOC(config)

    def _features(self, inputs: ModelInputs, topology: Topology | None) -> BackboneOutput:
        out: BackboneOutput = self.backbone(self.embedding(inputs.atomic_numbers), inputs, topology)
        return out

    def scale_stages(self) -> list[list[str]]:
        """Names of scale factors in running order, see `fit_scale_factors`."""
        return [[f"backbone.{name}" for name in stage] for stage in self.backbone.scale_stages()]


class PretrainingModel(_AtomisticModel):
    """The JMP pre-training model: one energy and one force head per task."""

    def __init__(self, config: GemNetOCConfig, *, tasks: Sequence[str] = PRETRAINING_TASKS) -> None:
        super().__init__(config)
        self.tasks = tuple(tasks)
        self.output = PretrainingHeads(config, len(self.tasks))

    def forward(self, batch: Any, *, topology: Topology | None = None, task_index: Tensor | None = None) -> Predictions:
        """Evaluate the heads.

        Args:
            batch: `ModelInputs`, or a batch that `ModelInputs.from_batch` reads.
            topology: index structure of the graphs, if it is at hand already.
            task_index: (B,) the task of each structure. If given, only that head is evaluated for it, and the columns
                of the others are zero: all that a loss masked by task can see, for a quarter of the work.
        """
        inputs = as_inputs(batch)
        own = None
        if task_index is not None:
            topology = topology or self.backbone.topology(inputs)
            own = OwnRows.of(task_index, len(self.tasks), inputs, topology)
        return Predictions(*self.output(self._features(inputs, topology), inputs, own))


class FineTuningModel(_AtomisticModel):
    """A backbone with heads of one's own, and gradient forces on request."""

    def __init__(
        self, config: GemNetOCConfig, heads: Mapping[str, nn.Module], *, forces_from_gradient: bool = False
    ) -> None:
        super().__init__(config)
        if forces_from_gradient and "energy" not in heads:
            raise ValueError("gradient forces need a head named 'energy'")
        if forces_from_gradient and "forces" in heads:
            raise ValueError("forces come either from a head or from the gradient, not both")
        self.heads = nn.ModuleDict(heads)
        self.forces_from_gradient = forces_from_gradient
        self.force_scale: ForceScale | None = None
        """For half precision; none by default."""

    def forward(self, batch: Any, *, topology: Topology | None = None) -> dict[str, Tensor]:
        """Evaluate all heads: name → output, with "forces" (N, 3) added in gradient mode.

        Gradient forces need autograd inside; in evaluation mode the outputs come back detached.
        """
        inputs = as_inputs(batch)
        if not self.forces_from_gradient:
            return self._evaluate(inputs, topology)
        with torch.enable_grad():
            positions = inputs.positions
            if not positions.requires_grad:
                positions = positions.detach().requires_grad_()
            # Training on forces differentiates twice, where ordinary operations are the shorter way.
            with plain_layers(self.training):
                out = self._evaluate(replace(inputs, positions=positions), topology)
                differentiate = gradient_forces if self.force_scale is None else self.force_scale.forces
                out["forces"] = differentiate(out["energy"], positions, create_graph=self.training)
        return out if self.training else {name: value.detach() for name, value in out.items()}

    def _evaluate(self, inputs: ModelInputs, topology: Topology | None) -> dict[str, Tensor]:
        features = self._features(inputs, topology)
        return {name: head(features, inputs) for name, head in self.heads.items()}


def as_inputs(batch: Any) -> ModelInputs:
    """Accept `ModelInputs` or a `torch_geometric` batch.

    Raises:
        InvalidStructureError: it is neither.
    """
    if isinstance(batch, ModelInputs):
        return batch
    if not hasattr(batch, "pos"):
        raise InvalidStructureError(f"a model reads ModelInputs or a torch_geometric batch, not {type(batch).__name__}")
    return ModelInputs.from_batch(batch)


def recompute_blocks(model: nn.Module, enabled: bool = True) -> None:
    """Trade work for memory in training, see `GemNetOC.recompute`; of every backbone inside the model."""
    for module in model.modules():
        if isinstance(module, GemNetOC):
            module.recompute = enabled


def shared_basis_divisors(model: nn.Module) -> dict[str, int]:
    """Parameters whose gradients the original divides after backward, with their divisors.

    Args:
        model: contains one `GemNetOC`; a wrapper such as DDP may be around it.

    Returns:
        Parameter name as in `model.named_parameters()` → number of uses per forward pass.
    """
    for name, module in model.named_modules():
        if isinstance(module, GemNetOC):
            prefix = f"{name}." if name else ""
            return {prefix + parameter: count for parameter, count in module.shared_basis_divisors().items()}
    raise ValueError("the model contains no GemNet-OC backbone")
