"""Everything inside one pass: basis projections, messages of the first block, all blocks, outputs, gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jmp_model.gemnet_oc.bases import Bases
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.interaction import expand_messages
from jmp_model.gemnet_oc.kernels import Geometry, Kernels
from jmp_model.gemnet_oc.output import EdgeContribution
from jmp_model.gemnet_oc.ragged import GroupCounts, PaddedLayout
from jmp_model.gemnet_oc.topology import Topology
from jmp_model.model import PretrainingModel
from jmp_model.parity.edges import Order
from jmp_model.parity.fixtures import Arrays, Errors, relative_error

_FIRST_BLOCK = {
    "int0_trip_interaction": ("trip_interaction", True),
    "int0_quad_interaction": ("quad_interaction", True),
    "int0_atom_edge_interaction": ("atom_edge_interaction", True),
    "int0_edge_atom_interaction": ("edge_atom_interaction", False),
    "int0_atom_interaction": ("atom_interaction", False),
    "int0_atom_update": ("atom_update", False),
    "int0_concat_layer": ("concat_layer", True),
}

_MESSAGES = ("trip_interaction", "quad_interaction", "atom_edge_interaction")


@contextmanager
def _recording(model: PretrainingModel) -> Iterator[dict[str, tuple[Any, bool]]]:
    """Collect outputs of modules under the names of the stored arrays, with whether they are per main edge."""
    found: dict[str, tuple[Any, bool]] = {}
    handles = []

    def record(module: nn.Module, name: str, per_edge: bool) -> None:
        handles.append(module.register_forward_hook(lambda _m, _i, out: found.update({name: (out, per_edge)})))

    def record_messages(module: nn.Module, name: str) -> None:
        def hook(_module: nn.Module, inputs: Any, out: Any) -> None:
            topology: Topology = inputs[2]
            found[name] = (expand_messages(out, topology.main.num_edges, model.config.emb_size_edge), True)

        handles.append(module.register_forward_hook(hook))

    def record_pair(module: nn.Module, names: tuple[str, str]) -> None:
        def hook(_module: nn.Module, _inputs: Any, out: Any) -> None:
            edges = out[1].product() if isinstance(out[1], EdgeContribution) else out[1]
            found.update({names[0]: (out[0], False), names[1]: (edges, True)})

        handles.append(module.register_forward_hook(hook))

    backbone = model.backbone
    record(model.embedding, "emb_h", False)
    record(backbone.bases.edge_emb, "emb_m", True)
    for name, (path, per_edge) in _FIRST_BLOCK.items():
        module = backbone.int_blocks[0].get_submodule(path)
        if path in _MESSAGES:
            record_messages(module, name)
        else:
            record(module, name, per_edge)
    for index, block in enumerate(backbone.int_blocks):
        record_pair(block, (f"int{index}_h", f"int{index}_m"))
    for index, block in enumerate(backbone.out_blocks):
        record_pair(block, (f"out{index}_xE", f"out{index}_xF"))
    record(backbone.out_mlp_E, "backbone_energy_emb", False)
    if model.config.direct_forces:
        record(backbone.out_mlp_F, "backbone_force_emb", True)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def compare_outputs(
    model: PretrainingModel, inputs: ModelInputs, topology: Topology, arrays: Arrays, orders: Mapping[str, Order]
) -> Errors:
    """Intermediates and outputs in evaluation mode, and outputs in training mode."""
    errors: Errors = {}
    with torch.no_grad():
        with _recording(model) as found:
            energy, forces = model(inputs, topology=topology)
        model.train()
        energy_train, forces_train = model(inputs, topology=topology)
        model.eval()
    for name, (value, per_edge) in found.items():
        if name not in arrays or (per_edge and "main_sym" not in orders):
            continue
        errors[name] = relative_error(value[orders["main_sym"]] if per_edge else value, arrays[name])
    outputs = {"energy": energy, "forces": forces, "energy_trainmode": energy_train, "forces_trainmode": forces_train}
    return errors | {name: relative_error(value, arrays[name]) for name, value in outputs.items() if name in arrays}


def compare_gradients(model: PretrainingModel, inputs: ModelInputs, topology: Topology, arrays: Arrays) -> Errors:
    """Norm and sum of the gradient of a stored linear loss, for each parameter."""
    if "grad_names" not in arrays:
        return {}
    model.zero_grad(set_to_none=True)
    energy, forces = model(inputs, topology=topology)
    weight_energy = torch.as_tensor(arrays["loss_wE"]).to(energy.dtype)
    weight_forces = torch.as_tensor(arrays["loss_wF"]).to(energy.dtype)
    ((energy * weight_energy).sum() + (forces * weight_forces).sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    names = [str(name) for name in arrays["grad_names"]]
    if set(names) != gradients.keys():
        return {"grad_names": 1.0}
    ordered = [gradients[name] for name in names]
    sums = np.array([float(g.double().sum()) for g in ordered])
    norms = np.array([float(g.double().norm()) for g in ordered])
    return {
        "grad_names": 0.0,
        "grad_norm": relative_error(norms, arrays["grad_norm"]),
        "grad_sum": relative_error(sums, arrays["grad_sum"]),
    }


def compare_bases(
    bases: Bases,
    kernels: Kernels,
    geometry: Geometry,
    topology: Topology,
    arrays: Arrays,
    orders: Mapping[str, Order],
) -> Errors:
    """Shared basis projections."""
    per_edge: dict[str, tuple[Tensor, str]] = {
        "basis_rad_e2e": (kernels.rad_e2e, "main_sym"),
        "basis_rad_a2e": (kernels.rad_a2e, "a2ee2a"),
        "basis_rad_e2a": (kernels.rad_e2a, "main_sym"),
        "basis_rad_main_qint": (kernels.rad_qint, "main_sym"),
        "basis_atom_update": (kernels.rad_atom_update, "main_sym"),
        "basis_output": (kernels.rad_output, "main_sym"),
        "basis_cir_e2e_radW": (bases.mlp_cbf_tint(kernels.radial), "main_sym"),
        "basis_cir_a2e_radW": (bases.mlp_cbf_aeint(kernels.radial), "main_sym"),
        "basis_sph_qint_radW": (bases.mlp_sbf_qint(kernels.radial), "main_sym"),
    }
    errors = {
        name: relative_error(value[orders[edges]], arrays[name])
        for name, (value, edges) in per_edge.items()
        if name in arrays and edges in orders
    }
    if "basis_cir_qint" in arrays and topology.quads is not None and {"main_sym", "qint"} <= orders.keys():
        errors["basis_cir_qint"] = relative_error(
            _circular_qint(kernels, topology, arrays, orders), arrays["basis_cir_qint"]
        )
    num_atoms = len(arrays["pos"])
    if "basis_cir_e2a_radW_padded" in arrays and "a2ee2a" in orders:
        values = bases.mlp_cbf_eaint(bases.radial_basis(geometry.a2ee2a_distance))[orders["a2ee2a"]]
        values = _pad_as_stored(values, arrays["a2ee2a_edge_index"][1], num_atoms)
        errors["basis_cir_e2a_radW_padded"] = relative_error(values, arrays["basis_cir_e2a_radW_padded"])
    if "basis_rad_a2a_padded" in arrays and "a2a" in orders:
        values = bases.mlp_rbf_aint(bases.radial_basis(geometry.a2a_distance))[orders["a2a"], :, None]
        values = _pad_as_stored(values, arrays["a2a_edge_index"][1], num_atoms)
        errors["basis_rad_a2a_padded"] = relative_error(values, arrays["basis_rad_a2a_padded"])
    return errors


def _circular_qint(kernels: Kernels, topology: Topology, arrays: Arrays, orders: Mapping[str, Order]) -> Tensor:
    """Our (qint edge, input slot) values in the order of the stored list of inner triplets."""
    quads = topology.quads
    assert quads is not None
    assert kernels.quads is not None
    main = torch.as_tensor(orders["main_sym"])[torch.as_tensor(arrays["quad_triplet_in_in"]).long()]
    qint = torch.as_tensor(orders["qint"])[torch.as_tensor(arrays["quad_triplet_in_out"]).long()]
    place = torch.searchsorted(quads.input_edges, main)
    slot = quads.input_layout.slot[place] % quads.input_layout.width
    return kernels.quads.circular[qint, slot]


def _pad_as_stored(values: Tensor, target: Any, num_atoms: int) -> Tensor:
    """(edges, I, S) in stored order to (atoms, I, slots·S), slots in stored order within each target."""
    target = torch.as_tensor(target).long()
    order = torch.argsort(target, stable=True)
    layout = PaddedLayout.of(target[order], GroupCounts.of(target, num_atoms))
    return layout.pad(values[order]).transpose(1, 2).flatten(2)
