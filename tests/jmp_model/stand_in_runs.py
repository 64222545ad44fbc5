"""The same work on the CPU and on the stand-in device; prints one JSON object. Run by test_other_devices.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ase.build import bulk
from lightning_fabric import Fabric

from jmp_model import JMPCalculator, load_model
from jmp_model.finetune.trainer import finetune
from jmp_model.train.trainer import pretrain
from tests.jmp_model.finetune.small_tasks import force_task, scalar_task, write_splits
from tests.jmp_model.finetune.small_tasks import small_config as finetune_config
from tests.jmp_model.gemnet_oc.structures import make_inputs, some_molecule, some_slab, tiny_model
from tests.jmp_model.train.small_runs import small_config, write_mixture
from tests.stand_in_device import DEVICE, NAME, stand_in

ON_DEVICE = f"hardware.accelerator={NAME}"


def pretraining(folder: Path, *overrides: str) -> list[float]:
    mix = folder / "mixture" / "mix.yaml"
    if not mix.exists():
        mix = write_mixture(mix.parent, train=12, val=3)
    return pretrain(small_config(mix, folder / "pretrained" / str(len(overrides)), *overrides, steps=3)).losses


def fine_tuning(folder: Path, task: Any, *overrides: str) -> dict[str, float]:
    if not (folder / "small").exists():
        write_splits(folder)
    out = folder / "tuned" / f"{task.name.replace(':', '-')}{len(overrides)}"
    rate = "optimizer.base_lr=1.0e-4"
    return finetune(
        finetune_config(task, folder, out, rate, *overrides, start=folder / "pretrained" / "0", steps=3)
    ).test


def prediction(folder: Path, device: Any) -> list[float]:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    model = load_model(folder / "pretrained" / "0", task="metals", forces="gradient", device=device)
    atoms.calc = JMPCalculator(model)
    return [atoms.get_potential_energy(), *atoms.get_forces().ravel(), *atoms.get_stress()]


def step(device: Any) -> list[float]:
    """Loss and norm of all gradients of one training step."""
    model = tiny_model(dtype=torch.float32).train().to(device)
    inputs = make_inputs([some_slab(1), some_molecule(2)]).with_dtype(torch.float32).to(device)
    tasks = torch.tensor([2, 0]).to(device)
    energy, forces = model(inputs, task_index=tasks)
    loss = energy.abs().sum() + forces.square().sum()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return [loss.item(), norm.item()]


def move_to_device() -> None:
    """Let Fabric put models on the device where it is asked for, as it does for those it knows."""
    set_up = Fabric.__init__

    def init(self: Fabric, *args: Any, **kwargs: Any) -> None:
        set_up(self, *args, **kwargs)
        if kwargs.get("accelerator") == NAME:
            self._strategy._root_device = DEVICE

    Fabric.__init__ = init


def both(run: Callable[[bool], Any]) -> dict[str, Any]:
    found = {"cpu": run(False)}
    with stand_in() as transfers:
        found["device"] = run(True)
    return found | {"to_host": dict(transfers.to_host), "to_device": dict(transfers.to_device)}


def main(folder: Path) -> None:
    move_to_device()
    hardware: dict[bool, tuple[str, ...]] = {False: (), True: (ON_DEVICE, "data.graphs_on=device")}
    where: dict[bool, Any] = {False: "cpu", True: DEVICE}
    results = {
        "pretraining": both(lambda there: pretraining(folder, *hardware[there])),
        "prediction": both(lambda there: prediction(folder, where[there])),
        "step": both(lambda there: step(where[there])),
    }
    for name, task in (("gradient forces", force_task()), ("scalar", scalar_task())):
        tuned = both(lambda there, task=task: fine_tuning(folder, task, *hardware[there][:1]))
        results[name] = tuned
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
