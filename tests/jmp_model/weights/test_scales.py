"""Scale factors of new models: fitted by themselves, kept as JSON, put into a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jmp_data.errors import CheckpointError
from jmp_model.gemnet_oc.scaling import scale_factors, unfitted_scales
from jmp_model.model import PretrainingModel
from jmp_model.train.setup import model_config
from jmp_model.weights.scales import FittedScales, apply_scales, fit_scales, read_scales, write_scales
from tests.jmp_model.train.small_runs import small_config, write_mixture


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("mixture"), train=6)


def fitted(mix: Path, *overrides: str) -> FittedScales:
    return fit_scales(small_config(mix, mix.parent / "run", *overrides))


def test_they_say_how_many_batches_there_really_were(mix: Path) -> None:
    """Two sets of six structures make three batches of four."""
    assert fitted(mix, "scale_batches=2").batches == 2
    assert fitted(mix, "scale_batches=1000").batches == 3


def test_they_come_back_from_their_file_and_fit_their_model_only(mix: Path, tmp_path: Path) -> None:
    scales = fitted(mix, "scale_batches=2")
    write_scales(scales, tmp_path / "scales.json")
    again = read_scales(tmp_path / "scales.json")
    assert again.factors == scales.factors
    config = small_config(mix, tmp_path / "run")
    torch.manual_seed(config.seed)
    model = PretrainingModel(model_config(config))
    assert unfitted_scales(model)
    apply_scales(model, again)
    assert not unfitted_scales(model)
    for name, factor in scale_factors(model):
        assert float(factor.scale_factor) == pytest.approx(scales.factors[name.removeprefix("backbone.")], rel=1e-6)
    deeper = config.model_copy(update={"model_changes": {**config.model_changes, "num_blocks": 2}})
    with pytest.raises(CheckpointError, match="of another model"):
        apply_scales(PretrainingModel(model_config(deeper)), again)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in ("{}", "nonsense"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"other\.json"):
            read_scales(tmp_path / "other.json")
