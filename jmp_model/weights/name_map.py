"""The one map between our parameter names and those of the released JMP checkpoints.

Names and order are equal, with three exceptions, all in the released files only:
the two buffers of the one gaussian basis are listed eight times, under every basis object that shares it;
`layers` of each output block are listed a second time as `seq_energy_pre`; and four `task_steps` counters are appended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from jmp_data.errors import CheckpointError
from jmp_model.presets import PRETRAINING_TASKS

OUR_GAUSSIANS = "backbone.bases.radial_basis.rbf"
RELEASED_GAUSSIANS = tuple(
    f"backbone.bases.{owner}.rbf"
    for owner in (
        "radial_basis",
        "cbf_basis_qint.radial_basis",
        "sbf_basis_qint.radial_basis",
        "radial_basis_aeaint",
        "cbf_basis_aeint.radial_basis",
        "cbf_basis_eaint.radial_basis",
        "radial_basis_aint",
        "cbf_basis_tint.radial_basis",
    )
)
GAUSSIAN_BUFFERS = ("offset", "temps")
ALIASED, ALIAS = ".layers.", ".seq_energy_pre."
COUNTERS = "task_steps."
MODEL_PREFIXES = ("embedding.", "backbone.", "output.")
WRAPPERS = ("_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")
"""What `torch.compile`, Fabric and FSDP put into the names of the modules that they wrap."""


def released_names(our_names: Iterable[str], *, tasks: Sequence[str] = ()) -> list[tuple[str, str | None]]:
    """List the released names of a state dict, in released order, each with the name of ours that it stands for.

    Args:
        our_names: names of our state dict, in order.
        tasks: tasks whose counters to append; those have no counterpart (None).
    """
    pairs: list[tuple[str, str | None]] = []
    pending: list[tuple[str, str | None]] = []
    for name in our_names:
        aliased = name.startswith("backbone.out_blocks.") and ALIASED in name
        if not aliased:
            pairs += pending
            pending = []
        if name.startswith(OUR_GAUSSIANS):
            if name.endswith(GAUSSIAN_BUFFERS[0]):
                pairs += [
                    (f"{owner}.{buffer}", f"{OUR_GAUSSIANS}.{buffer}")
                    for owner in RELEASED_GAUSSIANS
                    for buffer in GAUSSIAN_BUFFERS
                ]
            continue
        pairs.append((name, name))
        if aliased:
            pending.append((name.replace(ALIASED, ALIAS), name))
    pairs += pending
    return pairs + [(f"{COUNTERS}_module_dict._typed_moduledict_{task}.value", None) for task in tasks]


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that they had before the model was compiled or distributed.

    Raises:
        CheckpointError: two names become one.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = name.removeprefix("module.")
        for wrapper in WRAPPERS:
            bare = bare.replace(wrapper, "")
        if bare in plain:
            raise CheckpointError(f"two tensors are called {bare} once the names of wrappers are taken away")
        plain[bare] = tensor
    return plain


def is_parameter(released_name: str) -> bool:
    """Whether a released key is a trained tensor of its own; the averaged weights are a tuple of just those."""
    return not (
        released_name.endswith(("rbf.offset", "rbf.temps", "scale_factor"))
        or ALIAS in released_name
        or released_name.startswith(COUNTERS)
    )


def to_released(state: Mapping[str, Tensor], *, tasks: Sequence[str] = PRETRAINING_TASKS) -> dict[str, Tensor]:
    """Rename our state dict to the released layout, aliases and zeroed counters included, in released order."""
    return {
        released: torch.zeros(()) if ours is None else state[ours]
        for released, ours in released_names(state, tasks=tasks)
    }


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released state dict to our names; works on any subset of its keys.

    Raises:
        CheckpointError: two names of what should be one tensor hold different numbers.
    """
    ours: dict[str, Tensor] = {}
    seen: dict[str, str] = {}
    for released, tensor in state.items():
        name = our_name(released)
        if name is None:
            continue
        if name not in ours:
            ours[name], seen[name] = tensor, released
        elif ours[name].shape != tensor.shape or not torch.equal(ours[name], tensor):
            raise CheckpointError(
                f"{released} and {seen[name]} differ, but are one tensor in every JMP checkpoint: the file is damaged "
                "or belongs to another model"
            )
    return ours


def our_name(released_name: str) -> str | None:
    """Our name of one released key; None for the counters, which are no weights."""
    if released_name.startswith(COUNTERS):
        return None
    for owner in RELEASED_GAUSSIANS:
        for buffer in GAUSSIAN_BUFFERS:
            if released_name == f"{owner}.{buffer}":
                return f"{OUR_GAUSSIANS}.{buffer}"
    if released_name.startswith("backbone.out_blocks."):
        return released_name.replace(ALIAS, ALIASED)
    return released_name
