"""A device that is not the CPU, on any machine: its tensors hide ordinary ones, and none meets one of the host.

What no test on a CPU shows: a constant left on the host, an index on the wrong side, a tensor that is read back. Mixing
devices is an error here as it is on a GPU, and every transfer is counted with the line of code that asked for it.

Importing this module registers the device, which changes a whole process: what needs it runs in one of its own.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.accelerators import ACCELERATOR_REGISTRY, Accelerator
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

_CODE = Path(__file__).parents[1]
_TELLS_SIZE = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "is_nonzero")
"""Operations whose result the host must wait for."""


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


NAME = "standin"
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)


class OnDevice(torch.Tensor):
    """A tensor of the device."""

    raw: torch.Tensor
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        """Hide an ordinary tensor."""
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE,
            requires_grad=requires_grad,
        )  # fmt: skip
        made.raw = raw
        return made

    def __repr__(self) -> str:
        """Show what is hidden."""
        return f"OnDevice({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse: there is no such device outside `stand_in`."""
        raise RuntimeError(f"{func} of a device tensor outside of stand_in()")


@dataclass
class Transfers:
    """How often data went each way, by operation and line of code."""

    to_host: Counter[str] = field(default_factory=Counter)
    to_device: Counter[str] = field(default_factory=Counter)


class _Dispatch(TorchDispatchMode):
    def __init__(self, transfers: Transfers) -> None:
        super().__init__()
        self.transfers = transfers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(leaf, torch.Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        name = func.overloadpacket.__name__
        if ours and name not in ("_to_copy", "copy_"):
            strangers = [t for t in tensors if not isinstance(t, OnDevice) and t.dim()]
            if strangers:
                raise RuntimeError(f"{func} mixes devices: {[(type(t).__name__, tuple(t.shape)) for t in tensors]}")
        device = kwargs.get("device")
        here = bool(ours) if device is None else torch.device(device).type == DEVICE.type
        self._count(func, name, args, ours, tensors, here)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        hidden = {id(tensor.raw): tensor for tensor in ours}
        bare = pytree.tree_map(lambda leaf: leaf.raw if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
        with _disable_current_modes():
            out = func(*bare[0], **bare[1])

        def wrapped(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            if id(leaf) in hidden:
                return hidden[id(leaf)]
            return OnDevice(leaf) if here else leaf

        return pytree.tree_map(wrapped, out)

    def _count(self, func: Any, name: str, args: Any, ours: list[OnDevice], all_: list[Any], here: bool) -> None:
        if name == "copy_":
            crosses = len(ours) == 1
            down = crosses and isinstance(all_[1], OnDevice)
        else:
            down = bool(ours) and (
                name in (*_TELLS_SIZE, "_local_scalar_dense")
                or (name == "_to_copy" and not here)
                or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]))
                or (name == "repeat_interleave" and len(all_) > 0)
            )
            crosses = down or (name == "_to_copy" and here and not ours)
        if crosses:
            (self.transfers.to_host if down else self.transfers.to_device)[f"{func} {_caller()}"] += 1


class _Functions(TorchFunctionMode):
    """What makes tensors of Python numbers, or the reverse, and is not dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].to("cpu").tolist()
        if func is torch.Tensor.numpy and isinstance(args[0], OnDevice):
            raise TypeError("numpy() of a device tensor")
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnDevice):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(args[1], **{**kwargs, "device": "cpu"}).to(device or DEVICE)
        from_host = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if from_host and device is not None and torch.device(device).type == DEVICE.type:
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        return func(*args, **kwargs)


def _caller() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if path.name != Path(__file__).name and path.is_relative_to(_CODE) and ".venv" not in path.parts:
            return f"{path.relative_to(_CODE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class _Accelerator(Accelerator):
    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


ACCELERATOR_REGISTRY.register(NAME, _Accelerator)
torch.__future__.set_overwrite_module_params_on_conversion(True)


@contextmanager
def stand_in() -> Iterator[Transfers]:
    """Let tensors live on `DEVICE` inside this context."""
    transfers = Transfers()
    with _Functions(), _Dispatch(transfers):
        yield transfers
