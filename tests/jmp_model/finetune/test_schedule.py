from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jmp_model.finetune.config import FinetuneConfig, ScheduleSettings, load_finetune_config
from jmp_model.finetune.groups import BLOCK_FACTORS, EMBEDDING_FACTOR, layer_groups, published_rates
from jmp_model.finetune.model import build_model
from jmp_model.finetune.schedule import EarlyStop, Plateau, group_schedule, total_steps
from jmp_model.presets import preset
from jmp_model.train.config import read_recipe
from tests.jmp_model.finetune.small_tasks import scalar_task

BASE = 8e-5


def schedule(factor: float, **changes):
    return group_schedule(ScheduleSettings(**changes), base_lr=BASE, factor=factor, steps_per_epoch=10)


@pytest.mark.parametrize("factor", [0.30, 0.55, 0.625, 1.0])
def test_published_shape(factor: float) -> None:
    rate = schedule(factor)
    assert rate(0) == pytest.approx(0.1 * factor * BASE)
    assert (rate(49), rate(50)) == (pytest.approx(factor * BASE), pytest.approx(factor * BASE))
    assert rate(1) - rate(0) == pytest.approx(0.9 * factor * BASE / 49)
    assert rate(320) == rate(100_000) == pytest.approx(0.1 * BASE)


@pytest.mark.parametrize("factor", sorted({EMBEDDING_FACTOR, 1.0, *BLOCK_FACTORS[4], *BLOCK_FACTORS[6]}))
def test_every_step_follows_the_published_formulas(factor: float) -> None:
    """Warm-up by repeated addition, cosine as written down, then constant until the plateau rule speaks."""
    s, peak = 10, factor * BASE
    warmup, end = 5 * s, 32 * s
    floor = peak * min(0.99, max(0.01, 0.1 / factor))
    rate, expected = schedule(factor), 0.1 * peak
    for t in range(end + 50):
        if 0 < t < warmup:
            expected += (peak - 0.1 * peak) / (warmup - 1)
        elif t == warmup:
            expected = peak
        elif warmup < t < end:
            expected = floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * (t - warmup) / (end - warmup)))
        elif t >= end:
            expected = floor
        assert rate(t) == pytest.approx(expected, rel=1e-12), t


def test_the_recipe_file_spells_out_the_schedule_and_the_defaults() -> None:
    written = read_recipe("finetune")
    config = load_finetune_config("qm9:mu", out=Path("run"))
    defaults = FinetuneConfig(task=config.task, out=Path("run"))
    assert config == defaults
    for section in ("optimizer", "schedule", "stop"):
        assert written[section].keys() == getattr(defaults, section).model_dump().keys()


@given(factor=st.floats(0.01, 1.0))
def test_floor_factor_is_clamped(factor: float) -> None:
    floor = schedule(factor)(10_000) / (factor * BASE)
    assert floor == pytest.approx(min(0.99, max(0.01, 0.1 / factor)))


def test_a_short_run_has_its_whole_schedule_in_it() -> None:
    rate = schedule(1.0, max_steps=64)
    assert rate(63) < 0.11 * BASE
    assert max(rate(step) for step in range(64)) == pytest.approx(BASE)
    assert rate(10) == pytest.approx(BASE, rel=1e-3)
    assert total_steps(ScheduleSettings(max_steps=64), 10) == 64
    assert total_steps(ScheduleSettings(max_epochs=3), 10) == 30


@given(metrics=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60), patience=st.integers(0, 4))
def test_plateau_rule_is_torchs(metrics: list[float], patience: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.8, patience=patience, threshold=1e-4)
    ours = Plateau(0.8, patience, 1e-4)
    for metric in metrics:
        theirs.step(metric)
        ours.update(metric)
        again = Plateau(0.8, patience, 1e-4)
        again.load_state_dict(ours.state_dict())
        ours = again
        assert ours.scale == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_can_maximise() -> None:
    rule = Plateau(0.5, 0, 0.0, higher_is_better=True)
    for metric in (0.5, 0.6, 0.7):
        rule.update(metric)
    assert rule.scale == 1.0
    rule.update(0.7)
    assert rule.scale == 0.5


def test_early_stop_counts_validations_without_improvement() -> None:
    stop = EarlyStop(2, 0.1)
    assert stop.update(1.0)
    assert not stop.update(0.95)
    assert stop.update(0.8)
    assert not stop.update(0.8)
    assert not stop.exhausted
    assert not stop.update(0.75)
    assert stop.exhausted
    assert stop.best == 0.8
    other = EarlyStop(2, 0.1)
    other.load_state_dict(stop.state_dict())
    assert other.exhausted


class TestLayerGroups:
    def test_sizes_are_those_of_the_original(self) -> None:
        """Printed by the original's notebook for JMP-L without its force branch and with one energy head."""
        with torch.device("meta"):
            model = build_model(scalar_task(targets={"gap": {"reduction": "sum"}}), preset("large"))
        groups = layer_groups(model, "published", num_blocks=6)
        parameters = dict(model.named_parameters())
        sizes: dict[str, int] = {}
        for group in groups:
            block = group.name.replace("out_blocks.0.", "out_blocks.1.").split(".")
            key = block[0] if len(block) < 3 else f"block {int(block[2]) - (block[1] == 'out_blocks')}"
            sizes[key] = sizes.get(key, 0) + sum(parameters[name].numel() for name in group.parameters)
        assert sizes["embedding"] == 30_720
        assert sizes["block 0"] == 27_354_112
        assert [sizes[f"block {k}"] for k in range(1, 6)] == [26_272_768] * 5

    def test_factors(self) -> None:
        small, large = published_rates(4), published_rates(6)
        assert [small[f"backbone.int_blocks.{k}."] for k in range(4)] == [0.30, 0.40, 0.55, 0.625]
        assert [large[f"backbone.int_blocks.{k}."] for k in range(6)] == [0.55, 0.40, 0.30, 0.40, 0.55, 0.625]
        assert [large[f"backbone.out_blocks.{k}."] for k in range(7)] == [0.55, 0.55, 0.40, 0.30, 0.40, 0.55, 0.625]
        assert small["embedding."] == large["embedding."] == 0.30
        assert published_rates(2) == {}

    def test_one_rate_for_other_models(self) -> None:
        model = build_model(scalar_task(), preset("tiny"))
        groups = layer_groups(model, "published", num_blocks=2)
        assert [(group.name, group.factor) for group in groups] == [("rest", 1.0)]
        assert len(groups[0].parameters) == len(list(model.parameters()))

    def test_own_factors(self) -> None:
        model = build_model(scalar_task(), preset("tiny"))
        groups = layer_groups(model, {"backbone.": 0.5, "backbone.bases.": 0.1}, num_blocks=2)
        assert {group.name: group.factor for group in groups} == {"backbone.": 0.5, "backbone.bases.": 0.1, "rest": 1.0}
        from jmp_data.errors import ManifestError

        with pytest.raises(ManifestError, match="no parameter begins with 'backbones'"):
            layer_groups(model, {"backbones": 0.5}, num_blocks=2)
