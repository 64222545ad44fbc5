"""Hyper-parameters of the GemNet-OC backbone, named as in the released checkpoints' `hyper_parameters["backbone"]`.

Only choices that the JMP models make are offered: gaussian radial basis, polynomial envelope, Legendre angular bases,
all four kinds of interaction. `from_released` refuses any other setting instead of computing something else silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from jmp_data.errors import CheckpointError

Symmetrization = Literal["reference", "symmetric"]
Collinear = Literal["right_angle", "as_computed"]

# Settings of the original configuration that change nothing in the backbone (no effect there, or not architecture).
_WITHOUT_EFFECT = frozenset(
    {
        "num_targets", "extensive", "use_pbc", "otf_graph", "forces_coupled", "scale_file", "scale_backprop_forces",
        "regress_energy", "regress_forces", "ln", "replace_scale_factors_with_ln", "old_gaussian_implementation",
        "name", "lr_reduce_on_plateau", "cutoff", "cutoff_qint", "cutoff_aeaint", "cutoff_aint", "max_neighbors",
        "max_neighbors_qint", "max_neighbors_aeaint", "max_neighbors_aint", "enforce_max_neighbors_strictly",
    }
)  # fmt: skip

# Settings that do change the result, with the one value that is implemented.
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation": ("scaled_silu", "scaled_swish"),
    "quad_interaction": (True,),
    "atom_edge_interaction": (True,),
    "edge_atom_interaction": (True,),
    "atom_interaction": (True,),
    "scale_basis": (False,),
    "rbf_spherical": (None,),
    "unique_basis_per_layer": (False,),
    "learnable_rbf": (False,),
    "learnable_rbf_stds": (False,),
    "dropout": (None, 0.0),
}
_BASIS_NAMES = {"rbf": "gaussian", "envelope": "polynomial", "cbf": "spherical_harmonics", "sbf": "legendre_outer"}


@dataclass(frozen=True, kw_only=True)
class GemNetOCConfig:
    """Sizes of one GemNet-OC backbone; see `jmp_model.presets` for the published ones."""

    num_blocks: int
    emb_size_atom: int
    emb_size_edge: int
    emb_size_trip_in: int
    emb_size_trip_out: int
    emb_size_quad_in: int
    emb_size_quad_out: int
    emb_size_aint_in: int
    emb_size_aint_out: int
    emb_size_rbf: int
    emb_size_cbf: int
    emb_size_sbf: int
    num_before_skip: int = 2
    num_after_skip: int = 2
    num_concat: int = 1
    num_atom: int = 3
    num_output_afteratom: int = 3
    num_atom_emb_layers: int = 2
    num_global_out_layers: int = 2
    num_spherical: int = 7
    num_radial: int = 128
    num_elements: int = 120
    absolute_rbf_cutoff: float = 12.0
    """Å; end of the radial basis for all four graphs, whatever cutoff the graphs were built with."""
    envelope_exponent: int = 5
    qint_tags: tuple[int, ...] = (1, 2)
    """Quadruplet middle edges need an atom with one of these tags; applied where graphs are built, recorded here."""
    edge_dropout: float = 0.0
    """Share of atom-pair edges that the graphs drop in training; the output blocks rescale by 1/(1 − p)."""
    direct_forces: bool = True
    """Keep the force branch: per-edge features for direct force heads."""
    symmetrization: Symmetrization = "reference"
    """How the truncated main graph is made symmetric: "reference" depends on the order of atoms, "symmetric" not."""

    collinear: Collinear = "right_angle"
    """Dihedral of an atom on the axis of a quadruplet: defined as π/2, or whatever rounding leaves of the original's
    formula, which is π/2 to 1e-7 in float64 and noise in float32."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a model."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith(("emb_size", "num_", "envelope")):
                least = 0 if field.name in _MAY_BE_ZERO else 1
                if type(value) is not int or value < least:
                    raise ValueError(f"GemNetOCConfig.{field.name} = {value!r}: must be a whole number from {least} on")
        cutoff = self.absolute_rbf_cutoff
        if not isinstance(cutoff, int | float) or not 0.0 < cutoff < math.inf:
            raise ValueError(f"GemNetOCConfig.absolute_rbf_cutoff = {cutoff!r}: must be a length in Å")
        if not 0.0 <= self.edge_dropout < 1.0:
            raise ValueError(f"GemNetOCConfig.edge_dropout = {self.edge_dropout}: must lie in [0, 1)")
        if self.symmetrization not in ("reference", "symmetric"):
            raise ValueError(f"GemNetOCConfig.symmetrization = {self.symmetrization!r}: 'reference' or 'symmetric'")
        if self.collinear not in ("right_angle", "as_computed"):
            raise ValueError(f"GemNetOCConfig.collinear = {self.collinear!r}: 'right_angle' or 'as_computed'")

    @classmethod
    def from_released(cls, settings: Mapping[str, Any]) -> GemNetOCConfig:
        """Read the backbone settings of a released checkpoint (or of a parity `config.json`).

        Args:
            settings: plain dictionary, as in `hyper_parameters["backbone"]`.

        Raises:
            CheckpointError: a setting asks for something that this implementation does not compute.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in settings.items():
            if name in _BASIS_NAMES:
                _check_basis(name, value)
                if name == "envelope":
                    values["envelope_exponent"] = _exponent(value)
            elif name in _FIXED:
                if value not in _FIXED[name]:
                    raise CheckpointError(f"backbone setting {name} = {value!r} is not supported: only {_FIXED[name]}")
            elif name == "qint_tags":
                values[name] = tuple(int(tag) for tag in value)
            elif name == "edge_dropout":
                values[name] = float(value or 0.0)
            elif name in known:
                values[name] = value
            elif name not in _WITHOUT_EFFECT and value:
                raise CheckpointError(f"backbone setting {name} = {value!r} is unknown; it may change the result")
        missing = [
            field.name for field in fields(cls) if field.name.startswith("emb_size") and field.name not in values
        ]
        if missing:
            raise CheckpointError(f"backbone settings lack {', '.join(missing)}: not a GemNet-OC configuration")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values; `GemNetOCConfig(**d)` reads them back."""
        return {**asdict(self), "qint_tags": list(self.qint_tags)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GemNetOCConfig:
        """Inverse of `to_dict`."""
        return cls(**{**values, "qint_tags": tuple(values.get("qint_tags", (1, 2)))})


_MAY_BE_ZERO = {
    "num_before_skip", "num_after_skip", "num_concat", "num_atom", "num_output_afteratom", "num_atom_emb_layers",
    "num_global_out_layers",
}  # fmt: skip


def _exponent(envelope: Any) -> Any:
    if not isinstance(envelope, Mapping) or "exponent" not in envelope:
        raise CheckpointError(f"backbone setting envelope = {envelope!r} names no exponent")
    return envelope["exponent"]


def _check_basis(name: str, value: Any) -> None:
    chosen = value["name"] if isinstance(value, Mapping) else value
    if chosen != _BASIS_NAMES[name]:
        raise CheckpointError(f"backbone setting {name} = {chosen!r} is not supported: only {_BASIS_NAMES[name]!r}")
