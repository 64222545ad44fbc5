"""Replay a stored optimiser trajectory through the trainer's own step, and compare whatever the files hold.

A trajectory folder has a `config.json` with the constants, batches `batch<k>.npz` with stored graphs and raw targets,
and one `<run>.npz` for each entry of `runs`. Every run starts from the weights named there, in the folder or the one
above.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor
from torch_geometric.data import Batch

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.graphs import GRAPH_NAMES
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.model import PretrainingModel, shared_basis_divisors
from jmp_model.train.ema import WeightAverage
from jmp_model.train.losses import ForceLoss, LossWeights
from jmp_model.train.optimizer import build_adamw, gradient_norm
from jmp_model.train.schedules import WarmupCosine
from jmp_model.train.step import MicroBatch, OptimizerStep, Stage, StepReport
from jmp_model.train.targets import TargetNormalizer, TaskNormalizer
from jmp_model.weights.name_map import from_released

Array = npt.NDArray[Any]
Errors = dict[str, dict[str, float]]


def replay_trajectory(directory: str | Path, dtype: torch.dtype = torch.float64) -> Errors:
    """Replay all runs of a trajectory.

    Args:
        directory: parity folder; the trajectory lies in its `trajectory` folder. An empty result if there is none.
        dtype: float64 or float32.

    Returns:
        `trajectory/<run>` → array → largest error relative to the array's largest magnitude.

    Raises:
        MissingFileError: a run, a batch or the start weights are missing.
        RawFileError: a file does not have the described layout.
    """
    folder = Path(directory) / "trajectory"
    if not (folder / "config.json").exists():
        return {}
    # torch 2.13: the first threaded float64 exp of a process may be off by 3e-9.
    torch.exp(torch.zeros(1, dtype=dtype))
    trajectory = _Trajectory(folder, dtype)
    return {f"trajectory/{run}": trajectory.replay(run) for run in trajectory.config["runs"]}


class _Trajectory:
    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self.dtype = dtype
        self.config = json.loads(_existing(folder / "config.json").read_text())
        parent = json.loads(_existing(folder.parent / "config.json").read_text())
        self.backbone = GemNetOCConfig.from_released(
            {**parent["backbone"], "edge_dropout": self.config["edge_dropout"], "dropout": self.config["dropout"]}
        )
        name = self.config["start_weights"].split()[0]
        found = folder / name if (folder / name).exists() else folder.parent / name
        self.start_weights = from_released(load_file(_existing(found)))

    def replay(self, run: str) -> dict[str, float]:
        """Run the steps of one run and compare every array of its file that is known."""
        with np.load(_existing(self.folder / f"{run}.npz")) as stored:
            expected = {name: stored[name] for name in stored.files}
        recorder = _Recorder(*self._build_step(run))
        for step, index in enumerate(expected["batch_index"].tolist()):
            recorder.run(step, self._micro_batch(index))
        ours = recorder.arrays(expected, schedule_length=len(expected.get("lr_schedule", ())))
        errors = {name: relative_error(ours[name], expected[name]) for name in ours if name in expected}
        if "step1_energy_out" in expected:
            errors |= self._compare_weights(recorder, len(expected["batch_index"]))
        return errors

    def _build_step(self, run: str) -> tuple[OptimizerStep, PretrainingModel]:
        c = self.config
        # Not "64-true": that plugin casts outputs to the default dtype. "32-true" leaves the model's own dtype alone.
        fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
        model = PretrainingModel(self.backbone, tasks=c["tasks"]).to(self.dtype)
        model.load_state_dict(self.start_weights)
        settings = c["optimizer"]
        optimizer = build_adamw(
            model,
            lr=settings["peak_lr"],
            betas=tuple(settings["betas"]),
            eps=settings["eps"],
            weight_decay=settings["weight_decay"],
        )
        average = WeightAverage(model, c["ema_decay"])
        forward, wrapped = fabric.setup(model, optimizer)
        force_loss: ForceLoss = "atomwise" if run.startswith("atomwise") else "structurewise"
        weights = LossWeights(
            torch.tensor(c["lambda_energy"], dtype=self.dtype),
            torch.tensor(c["lambda_force"], dtype=self.dtype),
            force_loss,
        )
        schedule = WarmupCosine(settings["peak_lr"], **c["schedule"], past_end="swing")
        step = OptimizerStep(
            fabric=fabric,
            module=model,
            forward=forward,
            bare_optimizer=optimizer,
            optimizer=wrapped,
            average=average,
            schedule=schedule,
            weights=weights,
            shared_divisors=shared_basis_divisors(model),
            clip_norm=c["runs"][run].get("clip_value", c["grad_clip"]["value"]),
        )
        return step, model

    def _micro_batch(self, index: int) -> MicroBatch:
        with np.load(_existing(self.folder / f"batch{index}.npz")) as stored:
            arrays = {name: stored[name] for name in stored.files}
        tensor = {name: torch.from_numpy(value) for name, value in arrays.items() if value.dtype.kind in "fiub"}
        graphs = {f"{name}_edge_index": tensor[f"{name}_edge_index"].long() for name in GRAPH_NAMES}
        graphs |= {f"{name}_cell_offsets": tensor[f"{name}_cell_offset"].long() for name in GRAPH_NAMES}
        batch = Batch(
            pos=tensor["pos"].to(self.dtype),
            cell=tensor["cell"].to(self.dtype),
            atomic_numbers=tensor["atomic_numbers"],
            batch=tensor["batch"],
            natoms=tensor["natoms"],
            fixed=tensor["fixed"],
            energy=tensor["energy_target_raw"],
            forces=tensor["force_target_raw"],
            dataset_index=tensor["task_idx"],
            **graphs,
        )
        return MicroBatch(batch, self._normalizer().normalize(batch, dtype=self.dtype))

    def _normalizer(self) -> TargetNormalizer:
        c = self.config
        rows = zip(c["tasks"], c["energy_mean"], c["energy_std"], c["force_std"], strict=True)
        return TargetNormalizer(
            [TaskNormalizer(task, {}, energy_std, force_std, mean) for task, mean, energy_std, force_std in rows]
        )

    def _compare_weights(self, recorder: _Recorder, steps: int) -> dict[str, float]:
        errors = {}
        ours: dict[str, Mapping[str, Tensor]] = {
            "params": dict(recorder.model.named_parameters()),
            "ema": recorder.step.average.average,
        }
        for kind, tensors in ours.items():
            path = self.folder / f"{kind}_step{steps}.safetensors"
            if path.exists():
                expected = from_released(load_file(path))
                names = sorted(expected)
                _check_names(path, names, tensors)
                errors[path.stem] = relative_error(_flat(tensors, names), _flat(expected, names))
        return errors


class _Recorder:
    """Runs steps and keeps what the files of a run hold."""

    def __init__(self, step: OptimizerStep, model: PretrainingModel) -> None:
        self.step = step
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.rows: list[dict[str, Array]] = []

    def run(self, number: int, micro: MicroBatch) -> None:
        """Do one step, looking at gradients after each stage."""
        row = self._all_heads(micro)
        report = self.step(number, [micro], on_stage=lambda stage: row.update(self._look(stage)))
        self.rows.append(row | _reported(report))

    def _all_heads(self, micro: MicroBatch) -> dict[str, Array]:
        """What every head says before the step, which itself evaluates those of each structure's task only."""
        self.model.train()
        with torch.no_grad():
            out = self.model(micro.inputs)
        return {"energy_out": out.energy.numpy(), "forces_out": out.forces.numpy()}

    def _look(self, stage: Stage) -> dict[str, Array]:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if stage == "backward":
            return {"grad_norm_raw": _number(gradient_norm(self.model)), "param_grad_norm_raw": _norms(gradients)}
        if stage == "divided":
            return {"param_grad_norm": _norms(gradients), "param_grad_sum": _sums(gradients)}
        if stage == "clipped":
            return {"grad_norm_clipped": _number(gradient_norm(self.model))}
        weights, averages = list(self.model.parameters()), list(self.step.average.average.values())
        moments = [self.step.bare_optimizer.state[p] for p in weights]
        return {
            "param_norm": _norms(weights),
            "param_sum": _sums(weights),
            "ema_norm": _norms(averages),
            "ema_sum": _sums(averages),
            "exp_avg_norm": _norms([m["exp_avg"] for m in moments]),
            "exp_avg_sq_norm": _norms([m["exp_avg_sq"] for m in moments]),
        }

    def arrays(self, expected: Mapping[str, Array], *, schedule_length: int) -> dict[str, Array]:
        """All arrays under the names of the files, parameters in the order of the file."""
        if "param_names" in expected:
            order = [self.names.index(name) for name in expected["param_names"].tolist()]
        else:
            order = list(range(len(self.names)))
        rows = [
            {
                name: value[order] if len(value.shape) == 1 and len(value) == len(order) else value
                for name, value in r.items()
            }
            for r in self.rows
        ]
        found = {name: np.stack([r[name] for r in rows]) for name in rows[0] if not name.endswith("_out")}
        for number, row in enumerate(rows, start=1):
            found |= {f"step{number}_{name}": value for name, value in row.items()}
        found["lr_schedule"] = np.array([self.step.schedule(s) for s in range(schedule_length)])
        if "shared_names" in expected:
            found["shared_divisor"] = np.array(
                [self.step.shared_divisors.get(name, 1) for name in expected["shared_names"].tolist()], np.float64
            )
        return found


def _reported(report: StepReport) -> dict[str, Array]:
    sums = report.sums
    return {
        "lr": np.array(report.lr),
        "loss": np.array(report.loss),
        "energy_loss": np.array(report.energy_loss),
        "force_loss": np.array(report.force_loss),
        "grad_norm": np.array(report.grad_norm),
        "energy_loss_task": sums.energy_loss_per_task().numpy(),
        "force_loss_task": sums.force_loss_per_task().numpy(),
        "logged_energy_loss_task": sums.mean_energy_loss().numpy(),
        "logged_force_loss_task": sums.mean_force_loss().numpy(),
        "metric_energy_mae": sums.energy_mae().numpy(),
        "metric_forces_mae": sums.force_mae().numpy(),
    }


def relative_error(ours: Array, expected: Array) -> float:
    """Largest difference over the largest magnitude of what is expected; infinite where NaN stands against a number."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    if ours.shape != expected.shape or not np.array_equal(np.isnan(ours), np.isnan(expected)):
        return math.inf
    known = ~np.isnan(expected)
    if not known.any():
        return 0.0
    scale = float(np.abs(expected[known]).max())
    return float(np.abs(ours[known] - expected[known]).max()) / (scale or 1.0)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; a trajectory folder needs it")
    return path


def _check_names(path: Path, names: list[str], tensors: Mapping[str, Any]) -> None:
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise RawFileError(f"{path}: tensor {unknown[0]} is no parameter of the model")


def _flat(tensors: Mapping[str, Tensor], names: list[str]) -> Array:
    flat: Array = torch.cat([tensors[name].detach().double().flatten() for name in names]).numpy()
    return flat


def _number(value: Tensor) -> Array:
    return np.array(float(value))


def _norms(tensors: list[Any]) -> Array:
    return np.array([float(t.detach().norm()) for t in tensors])


def _sums(tensors: list[Any]) -> Array:
    return np.array([float(t.detach().sum()) for t in tensors])
