from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jmp_data.errors import ManifestError
from jmp_model.train.config import PretrainConfig, apply_overrides, load_pretrain_config, read_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
PATHS = {"mix": Path("mix.yaml"), "out": Path("run")}


def test_recipe_file_spells_out_every_default() -> None:
    written = yaml.safe_load((RECIPES / "pretrain.yaml").read_text())
    defaults = PretrainConfig(**PATHS).model_dump(mode="json", exclude=set(PATHS))
    assert PretrainConfig(**PATHS, **written) == PretrainConfig(**PATHS)
    assert written.keys() == defaults.keys()
    for section, values in defaults.items():
        if isinstance(values, dict) and values:
            assert written[section].keys() == values.keys()


def test_the_published_numbers() -> None:
    c = load_pretrain_config("pretrain", **PATHS)
    assert (c.optimizer.peak_lr, c.optimizer.betas, c.optimizer.weight_decay) == (3e-4, (0.9, 0.95), 0.1)
    assert (c.optimizer.clip_norm, c.optimizer.ema_decay, c.data.edge_dropout) == (1.0, 0.99, 0.1)
    assert (c.schedule.warmup_steps, c.schedule.epochs) == (2000, 2.0)
    assert (c.schedule.start_factor, c.schedule.end_factor) == (0.2, 0.1)
    assert c.targets.force_weights == {"oc20": 73, "oc22": 80, "ani1x": 15, "transition1x": 14}


def test_tiny_has_its_own_recipe() -> None:
    tiny, small = load_pretrain_config(**PATHS, model="tiny"), load_pretrain_config(**PATHS, model="small")
    assert tiny.model == "tiny"
    assert tiny.optimizer.peak_lr > small.optimizer.peak_lr
    assert small == load_pretrain_config("pretrain", **PATHS)


def test_overrides_have_the_last_word() -> None:
    config = load_pretrain_config(
        "pretrain",
        overrides=["optimizer.peak_lr=1e-5", "schedule.steps=7", "model_changes.num_blocks=3"],
        steps=9,
        **PATHS,
    )
    assert (config.optimizer.peak_lr, config.schedule.steps, config.model_changes) == (1e-5, 7, {"num_blocks": 3})


def test_overrides_leave_the_recipe_alone() -> None:
    settings = {"a": {"b": 1}}
    assert apply_overrides(settings, ["a.c=[1, 2]"]) == {"a": {"b": 1, "c": [1, 2]}}
    assert settings == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.peek_lr=1", "unknown setting optimizer.peek_lr"),
        ("optimizer.peak_lr=-1", "optimizer.peak_lr"),
        ("data.batch_size=many", "data.batch_size"),
        ("peak_lr", "key=value"),
        ("data.micro_batches=64", "micro_batches is 64"),
        ("hardware.precision=8-bit", "hardware.precision"),
    ],
)
def test_bad_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        load_pretrain_config("pretrain", overrides=[override], **PATHS)


def test_missing_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no recipe 'pretrian'"):
        read_recipe("pretrian")
    with pytest.raises(ManifestError, match="no such recipe file"):
        read_recipe(tmp_path / "mine.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ManifestError, match="mapping"):
        read_recipe(tmp_path / "list.yaml")
