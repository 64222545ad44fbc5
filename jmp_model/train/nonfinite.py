"""When a loss or gradient is NaN or infinite: keep batch and weights, say which structures, and find the culprit.

A folder `nonfinite/step-<n>` then holds the batch of each rank (tensors, graphs included), what it was made of, and a
checkpoint with the weights that saw it. `replay` runs that one step again and names the first layer that went wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch_geometric.data import Batch

from jmp_data import Mixture
from jmp_data.errors import CheckpointError
from jmp_model.model import PretrainingModel
from jmp_model.train.checkpoint import read_checkpoint
from jmp_model.train.losses import LossWeights, select_task, structure_losses
from jmp_model.train.targets import TargetNormalizer

_KEPT = ("pos", "atomic_numbers", "cell", "pbc", "natoms", "tags", "fixed", "energy", "forces", "batch", "ptr")


def save_batch(folder: Path, batches: Sequence[Any], mixture: Mixture, rank: int) -> list[str]:
    """Store a rank's micro-batches.

    Returns:
        One line per structure: data set, index, and where it came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, batch in enumerate(batches):
        edges = [key for key in batch.to_dict() if key.endswith(("_edge_index", "_cell_offsets"))]
        names = (*_KEPT, "dataset_index", "structure_index", *edges)
        stem = f"rank{rank}-micro{number}"
        save_file({name: batch[name].cpu().contiguous() for name in names}, folder / f"{stem}.safetensors")
        lines += _describe(batch, mixture)
    (folder / f"rank{rank}.json").write_text(json.dumps(lines, indent=1, ensure_ascii=False))
    return lines


def _describe(batch: Any, mixture: Mixture) -> list[str]:
    lines = []
    for dataset, index in zip(batch.dataset_index.tolist(), batch.structure_index.tolist(), strict=True):
        member = mixture.members[dataset]
        lines.append(f"{member.name}[{index}] {member.dataset[index].source_id}")
    return lines


def replay(folder: Path) -> list[str]:
    """Run the stored batches through the stored weights, on the CPU in float32.

    Args:
        folder: `nonfinite/step-<n>` of a run.

    Returns:
        Findings, one a line.

    Raises:
        CheckpointError: the folder holds no stored batch.
    """
    files = sorted(folder.glob("rank*-micro*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no stored batch here; give the nonfinite/step-… folder of a run")
    checkpoint = read_checkpoint(folder / "checkpoint", with_optimizer=False)
    model = PretrainingModel(checkpoint.backbone, tasks=checkpoint.tasks)
    model.load_state_dict(checkpoint.weights(averaged=False))
    normalizer = TargetNormalizer(checkpoint.normalizers)
    ones = torch.ones(len(checkpoint.tasks))
    findings = []
    for file in files:
        batch = Batch(**load_file(file))
        findings += [f"{file.name}: {line}" for line in _examine(model, batch, normalizer, LossWeights(ones, ones))]
    return findings


def _examine(model: PretrainingModel, batch: Any, normalizer: TargetNormalizer, weights: LossWeights) -> list[str]:
    found: list[str] = []
    handles = [module.register_forward_hook(_Watch(name, found)) for name, module in model.named_modules() if name]
    model.train()
    model.zero_grad()
    targets = normalizer.normalize(batch)
    out = model(batch)
    for handle in handles:
        handle.remove()
    energy, forces = select_task(out.energy, out.forces, targets)
    losses = structure_losses(energy, forces, targets, weights)
    per_structure = losses.energy + losses.force
    where = _name_structures(batch)
    found = found[:1]
    found += [f"structure {where[b]}: target is not finite" for b in _bad_targets(targets)]
    found += [f"structure {where[b]}: loss is {per_structure[b].item()}" for b in _bad_rows(per_structure)]
    torch.autograd.backward(per_structure.sum())
    norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, norm in norms.items() if not torch.isfinite(norm)]
    found += [f"gradient of {bad[0]} and {len(bad) - 1} more is not finite"] if bad else []
    largest = max(norms, key=lambda name: float(torch.nan_to_num(norms[name])))
    found.append(f"loss {per_structure.mean().item():.6g}; largest finite gradient {norms[largest]:.6g} in {largest}")
    return found


class _Watch:
    """Notes modules whose output is not finite."""

    def __init__(self, name: str, found: list[str]) -> None:
        self._name = name
        self._found = found

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        if isinstance(output, Tensor) and not torch.isfinite(output).all():
            self._found.append(f"first output that is not finite: {self._name}")


def _name_structures(batch: Any) -> list[str]:
    pairs = zip(batch.dataset_index.tolist(), batch.structure_index.tolist(), strict=True)
    return [f"{index} of data set {dataset}" for dataset, index in pairs]


def _bad_targets(targets: Any) -> list[int]:
    bad_atoms = ~torch.isfinite(targets.forces).all(dim=-1)
    bad = ~torch.isfinite(targets.energy)
    bad[targets.batch[bad_atoms]] = True
    return [int(b) for b in bad.nonzero().flatten()]


def _bad_rows(values: Tensor) -> list[int]:
    return [int(b) for b in (~torch.isfinite(values)).nonzero().flatten()]
