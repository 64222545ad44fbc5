"""From hardware settings to a Fabric: devices, ranks, precision, and how parameters are spread."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from jmp_model.memory import keep_freed_memory
from jmp_model.train.config import HardwareSettings

_OTHER_ENTRIES = ("energy_features", "force_features")
"""Methods, besides forward, through which a block is called; its parameters must be gathered there too."""


def build_fabric(settings: HardwareSettings) -> Fabric:
    """Build Fabric; under `torchrun` the number of devices and nodes is taken from it.

    Where it computes on the CPU, the process keeps freed memory from now on. The caller still has to call `launch()`.
    """
    torch.set_float32_matmul_precision(settings.matmul_precision)
    devices, nodes = settings.devices, settings.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=devices,
        num_nodes=nodes,
        precision=settings.precision,
        strategy=_strategy(settings, devices, nodes),
    )
    if fabric.device.type == "cpu":
        keep_freed_memory()
    return fabric


def _strategy(settings: HardwareSettings, devices: int | str, nodes: int) -> Any:
    if settings.strategy == "fsdp":
        world_size = _world_size(devices, nodes)
        return ModelParallelStrategy(_shard_blocks, data_parallel_size=world_size, tensor_parallel_size=1)
    if settings.strategy == "auto" and _world_size(devices, nodes) == 1:
        return "auto"
    # A batch without quadruplets leaves their parameters out of the graph. Buffers are constants.
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)


def _world_size(devices: int | str, nodes: int) -> int:
    if devices in ("auto", "-1", -1):
        devices = max(1, torch.cuda.device_count())
    return int(devices) * nodes


def _shard_blocks(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard each interaction and output block on its own, so that one at a time is whole; then the rest."""
    data_parallel = mesh["data_parallel"]
    for name, module in model.named_modules():
        if name.endswith(("int_blocks", "out_blocks")):
            for block in module.children():
                fully_shard(block, mesh=data_parallel)
                for method in _OTHER_ENTRIES:
                    if hasattr(block, method):
                        register_fsdp_forward_method(block, method)
    fully_shard(model, mesh=data_parallel)
    return model
