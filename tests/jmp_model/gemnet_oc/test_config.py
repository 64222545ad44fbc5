"""Configurations: presets, released settings, and what is refused."""

from __future__ import annotations

import json

import pytest

from jmp_data.errors import CheckpointError
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.presets import PRESETS, preset

RELEASED = {
    **{name: 8 for name in vars(PRESETS["tiny"]) if name.startswith("emb_size")},
    "num_blocks": 1, "num_spherical": 7, "num_radial": 128, "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5}, "cbf": {"name": "spherical_harmonics"},
    "sbf": {"name": "legendre_outer"}, "qint_tags": [1, 2], "dropout": None, "edge_dropout": None, "num_targets": 1,
    "scale_file": "/somewhere/small.pt", "ln": False, "old_gaussian_implementation": False,
}  # fmt: skip


def test_presets_survive_json() -> None:
    for config in PRESETS.values():
        assert GemNetOCConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_preset_fields_can_be_changed() -> None:
    assert preset("tiny", direct_forces=False).direct_forces is False
    with pytest.raises(ValueError, match="large"):
        preset("huge")


def test_released_settings_are_read() -> None:
    config = GemNetOCConfig.from_released(RELEASED)
    assert config.qint_tags == (1, 2)
    assert config.edge_dropout == 0.0
    assert config.envelope_exponent == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rbf", {"name": "bessel"}),
        ("sbf", {"name": "spherical_harmonics"}),
        ("activation", "relu"),
        ("quad_interaction", False),
        ("scale_basis", True),
        ("some_new_option", True),
    ],
)
def test_settings_that_would_change_the_result_are_refused(name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=name):
        GemNetOCConfig.from_released({**RELEASED, name: value})


def test_a_foreign_configuration_is_named() -> None:
    with pytest.raises(CheckpointError, match="emb_size_atom"):
        GemNetOCConfig.from_released({"num_blocks": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_blocks", 0), ("edge_dropout", 1.0), ("symmetrization", "both"), ("collinear", "no")],
)
def test_impossible_values_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        preset("tiny", **{name: value})
