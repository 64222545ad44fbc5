"""A JMP model for TorchSim: many structures relaxed or propagated at once.

    from jmp_model.torch_sim_model import JMPTorchSimModel
    model = JMPTorchSimModel("run", task="ani1x", forces="gradient", dtype=torch.float64)

Needs `torch-sim-atomistic`. TorchSim keeps lattice vectors as columns; all other conventions are the same.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jmp_data.errors import CheckpointError, MissingExtraError
from jmp_model.inference import JMPModel, load_model

if TYPE_CHECKING:
    from torch.nn import Module as ModelInterface
else:
    try:
        from torch_sim.models.interface import ModelInterface
    except ImportError as error:
        raise MissingExtraError(f"TorchSim cannot be imported ({error}): pip install torch-sim-atomistic") from error


class JMPTorchSimModel(ModelInterface):
    """Energies, forces, and stresses where forces are gradients.

    Args:
        model: a loaded model, or what `load_model` reads.
        task: pre-training task whose heads to use; needed where there are several.
        **options: of `load_model`, such as dtype, device or forces, where `model` is a path.

    Raises:
        CheckpointError: the task predicts no energies or no forces, or see `load_model`.
    """

    def __init__(self, model: JMPModel | str | Path, *, task: str | None = None, **options: Any) -> None:
        super().__init__()
        loaded = model if isinstance(model, JMPModel) else load_model(model, task=task, **options)
        self.model = loaded
        self.task = loaded.find_task(task)
        if self.task.output("energy") is None or self.task.forces is None:
            raise CheckpointError(f"task {self.task.name} predicts no energies and forces, which TorchSim needs")
        self._device, self._dtype = loaded.device, loaded.dtype
        self._compute_forces = True
        self._compute_stress = self.task.forces == "gradient"

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Predict for a `SimState`, or a dictionary with its entries.

        Returns:
            energy (B,), forces (N, 3), and stress (B, 3, 3) of periodic states; in the precision of the model.
        """
        entries = SimpleNamespace(**state) if isinstance(state, dict) else state
        cell = entries.cell.mT
        periodic = torch.as_tensor(getattr(entries, "pbc", True)).bool().cpu().expand(3)
        batch = SimpleNamespace(
            pos=entries.positions,
            atomic_numbers=entries.atomic_numbers,
            batch=entries.system_idx,
            num_graphs=len(cell),
            cell=cell,
            pbc=periodic.expand(len(cell), 3),
        )
        stress = self._compute_stress and bool(periodic.any())
        out = self.model(batch, task=self.task.name, stress=stress)
        names = ("energy", "forces", "stress") if stress else ("energy", "forces")
        return {name: out[name].detach().to(self._dtype) for name in names}
