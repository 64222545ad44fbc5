"""When a loss or gradient is NaN or infinite: keep batch and weights, say which structures, and find the culprit.

A folder `nonfinite/step-<n>` then holds the batch of each rank (tensors, graphs included), what it was made of, and a
checkpoint with the weights that saw it. `replay` runs that one step again and names the first layer that went wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch_geometric.data import Batch

from jmp_data import ShardDataset
from jmp_data.errors import CheckpointError
from jmp_model.model import PretrainingModel
from jmp_model.train.checkpoint import read_checkpoint
from jmp_model.train.losses import LossWeights, select_task, structure_losses
from jmp_model.train.targets import TargetNormalizer

FOLDER = "nonfinite"


def nonfinite_folder(run: Path, step: int) -> Path:
    """Where a run keeps the batch of a step that went wrong."""
    return run / FOLDER / f"step-{step:08d}"


def save_batch(
    folder: Path, batches: Sequence[Any], datasets: Callable[[int], tuple[str, ShardDataset]], rank: int
) -> list[str]:
    """Store a rank's micro-batches.

    Args:
        folder: of the step.
        batches: with their graphs.
        datasets: `batch.dataset_index` → name and data set.
        rank: of this process.

    Returns:
        One line per structure: data set, index, and where it came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, batch in enumerate(batches):
        tensors = {name: value.cpu().contiguous() for name, value in batch.to_dict().items() if torch.is_tensor(value)}
        save_file(tensors, folder / f"rank{rank}-micro{number}.safetensors")
        lines += _describe(batch, datasets)
    (folder / f"rank{rank}.json").write_text(json.dumps(lines, indent=1, ensure_ascii=False))
    return lines


def _describe(batch: Any, datasets: Callable[[int], tuple[str, ShardDataset]]) -> list[str]:
    lines = []
    for number, index in zip(batch.dataset_index.tolist(), batch.structure_index.tolist(), strict=True):
        name, dataset = datasets(number)
        lines.append(f"{name}[{index}] {dataset[index].source_id}")
    return lines


def add_findings(error: Exception, folder: Path, lines: Sequence[str]) -> None:
    """Tell in the message of an error where the batch is and what it holds."""
    error.args = (
        f"{error}; the weights were not updated. Batch and weights are in {folder}: look at them with "
        f"--replay {folder}. The batch holds {', '.join(lines)}",
    )


def stored_batches(folder: Path) -> list[tuple[str, Any]]:
    """Name and content of each stored micro-batch.

    Raises:
        CheckpointError: the folder holds none.
    """
    files = sorted(folder.glob("rank*-micro*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no stored batch here; give the {FOLDER}/step-… folder of a run")
    return [(file.name, Batch(**load_file(file))) for file in files]


def replay(folder: Path) -> list[str]:
    """Run the stored batches through the stored weights, on the CPU in float32.

    Args:
        folder: `nonfinite/step-<n>` of a run.

    Returns:
        Findings, one a line.

    Raises:
        CheckpointError: the folder holds no stored batch, or one of fine-tuning.
    """
    batches = stored_batches(folder)
    checkpoint = read_checkpoint(folder / "checkpoint", with_optimizer=False)
    if not checkpoint.tasks:
        raise CheckpointError(f"{folder}: a step of fine-tuning; look at it with jmp train finetune --replay {folder}")
    model = PretrainingModel(checkpoint.backbone, tasks=checkpoint.tasks)
    model.load_state_dict(checkpoint.weights(averaged=False))
    normalizer = TargetNormalizer(checkpoint.normalizers)
    ones = torch.ones(len(checkpoint.tasks))
    findings = []
    for name, batch in batches:
        findings += [f"{name}: {line}" for line in _examine(model, batch, normalizer, LossWeights(ones, ones))]
    return findings


def _examine(model: PretrainingModel, batch: Any, normalizer: TargetNormalizer, weights: LossWeights) -> list[str]:
    targets = normalizer.normalize(batch)
    out, found = watched_forward(model, batch)
    energy, forces = select_task(out.energy, out.forces, targets)
    losses = structure_losses(energy, forces, targets, weights)
    per_structure = losses.energy + losses.force
    where = _name_structures(batch)
    found += [f"structure {where[b]}: target is not finite" for b in _bad_targets(targets)]
    found += [f"structure {where[b]}: loss is {per_structure[b].item()}" for b in _bad_rows(per_structure)]
    return found + examine_gradients(model, per_structure.mean())


def watched_forward(model: nn.Module, batch: Any) -> tuple[Any, list[str]]:
    """Outputs in training mode, and the first module, if any, whose output was not finite."""
    found: list[str] = []
    handles = [module.register_forward_hook(_Watch(name, found)) for name, module in model.named_modules() if name]
    model.train()
    model.zero_grad()
    out = model(batch)
    for handle in handles:
        handle.remove()
    return out, found[:1]


def examine_gradients(model: nn.Module, loss: Tensor) -> list[str]:
    """Go back from a loss, and name gradients that are not finite and the largest that is."""
    torch.autograd.backward(loss)
    norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, norm in norms.items() if not torch.isfinite(norm)]
    found = [f"gradient of {bad[0]} and {len(bad) - 1} more is not finite"] if bad else []
    finite = {name: float(norm) for name, norm in norms.items() if torch.isfinite(norm)}
    if not finite:
        return [*found, f"loss {loss.item():.6g}; no gradient is finite"]
    largest = max(finite, key=finite.__getitem__)
    return [*found, f"loss {loss.item():.6g}; largest finite gradient {finite[largest]:.6g} in {largest}"]


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
