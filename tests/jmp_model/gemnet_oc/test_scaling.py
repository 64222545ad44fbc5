"""Scale factors: an error where missing, variance preserved where fitted, and the same however batches are cut."""

from __future__ import annotations

import pytest
import torch
from ase.build import bulk

from jmp_data.errors import CheckpointError
from jmp_model.gemnet_oc.scaling import (
    ScaleFactor,
    VarianceSums,
    fit_scale_factors,
    mean_feature_variance,
    scale_factors,
    set_allow_unfitted,
    unfitted_scales,
)
from jmp_model.model import PretrainingModel
from jmp_model.presets import preset
from tests.jmp_model.gemnet_oc.structures import (
    make_inputs,
    rattled,
    some_crystal,
    some_molecule,
    some_slab,
    tiny_model,
)


@pytest.fixture
def unfitted() -> PretrainingModel:
    torch.manual_seed(0)
    return PretrainingModel(preset("tiny")).double()


@pytest.mark.parametrize("training", [True, False])
def test_unfitted_models_refuse_to_run_unless_told(unfitted: PretrainingModel, training: bool) -> None:
    inputs = make_inputs([some_molecule(1)])
    unfitted.train(training)
    assert len(unfitted_scales(unfitted)) == 11 * 2 + 2 * 3
    with pytest.raises(CheckpointError, match="fit-scales"):
        unfitted(inputs)
    set_allow_unfitted(unfitted, True)
    energy, _ = unfitted(inputs)
    assert energy.isfinite().all()


def test_fitting_keeps_variance_through_every_layer(unfitted: PretrainingModel) -> None:
    batches = [make_inputs([some_molecule(1), some_slab(2)]), make_inputs([some_crystal(3)])]
    stages = []
    fitted = fit_scale_factors(unfitted, batches, on_stage=lambda done, of: stages.append((done, of)))
    assert list(fitted) == [name for name, _ in scale_factors(unfitted)]
    assert all(value > 0 for value in fitted.values())
    assert unfitted_scales(unfitted) == []
    assert stages[-1] == (9, 9)
    assert fit_scale_factors(unfitted, batches) == fitted


def test_fitting_in_stages_equals_fitting_one_by_one(unfitted: PretrainingModel) -> None:
    batches = [make_inputs([some_molecule(1)]), make_inputs([some_slab(2)])]
    together = fit_scale_factors(unfitted, batches)
    stages = [[name] for name, _ in scale_factors(unfitted)]
    unfitted.scale_stages = lambda: stages  # type: ignore[method-assign]
    one_by_one = fit_scale_factors(unfitted, batches)
    assert one_by_one == pytest.approx(together, rel=1e-12)


def test_fitting_says_when_there_is_nothing_to_fit_on(unfitted: PretrainingModel) -> None:
    with pytest.raises(CheckpointError, match="quad_interaction"):
        fit_scale_factors(unfitted, [make_inputs([some_molecule(1, "H2O")])])


def test_atoms_of_one_element_are_fitted_by_their_mean_squares(unfitted: PretrainingModel) -> None:
    copper = rattled(bulk("Cu", cubic=True) * (2, 1, 1), 1)
    factors = fit_scale_factors(unfitted, [make_inputs([copper])])
    assert all(0.01 < value < 100 for value in factors.values())

    output, reference = torch.randn(50, 4), torch.full((60, 4), 3.0) + 1e-7 * torch.randn(60, 4)
    sums = VarianceSums()
    sums.add(output, reference, None)
    assert sums.factor("layer") == pytest.approx(3.0 / float(output.square().mean().sqrt()), rel=1e-5)


def test_weighted_variance_is_the_variance_of_repeated_rows() -> None:
    rows = torch.randn(6, 4, dtype=torch.float64)
    counts = torch.tensor([3, 0, 1, 2, 5, 1])
    repeated = rows.repeat_interleave(counts, dim=0)
    assert mean_feature_variance(rows, counts) == pytest.approx(mean_feature_variance(repeated), rel=1e-12)


def test_loading_weights_brings_their_scales() -> None:
    fitted = tiny_model()
    model = PretrainingModel(preset("tiny")).double()
    assert unfitted_scales(model)
    model.load_state_dict(fitted.state_dict())
    assert unfitted_scales(model) == []
    model.load_state_dict(PretrainingModel(preset("tiny")).state_dict())
    assert unfitted_scales(model)


def test_a_scale_multiplies() -> None:
    factor = ScaleFactor()
    factor.set(2.5)
    assert torch.equal(factor(torch.ones(3)), torch.full((3,), 2.5))
    assert [name for name, _ in factor.named_buffers()] == ["scale_factor"]
    assert list(factor.parameters()) == []
