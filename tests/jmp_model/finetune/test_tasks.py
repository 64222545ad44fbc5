"""The shipped task tables against the machine-readable facts they restate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jmp_data.errors import ManifestError
from jmp_model.finetune.model import build_model
from jmp_model.finetune.tasks import TaskSpec, find_task, paper_tasks, published_tasks
from jmp_model.presets import preset
from tests.shared import SHARED, needs_shared

QM9 = {
    "eps_HOMO": "homo",
    "eps_LUMO": "lumo",
    "delta_eps": "gap",
    "R_2_Abs": "r2",
    "ZPVE": "zpve",
    "U_0": "U0",
    "c_v": "cv",
}


def facts() -> list[dict[str, Any]]:
    if SHARED is None:
        return []
    table: dict[str, Any] = json.loads((SHARED / "reference" / "finetune-tasks.json").read_text())
    return list(table["tasks"])


def our_name(fact: dict[str, Any]) -> str:
    dataset, _, part = fact["id"].partition("/")
    return f"{dataset}:{ {'band_gap': 'bandgap'}.get(part, QM9.get(part, part)) }".replace(" ", "")


@needs_shared
def test_the_forty_tasks_in_their_order() -> None:
    assert [task.name for task in paper_tasks()] == [our_name(fact) for fact in facts()]
    assert set(published_tasks()) - {task.name for task in paper_tasks()} == {"matbench:mp_is_metal"}


@needs_shared
@pytest.mark.parametrize("fact", facts(), ids=lambda fact: fact["id"])
def test_task_restates_the_facts(fact: dict[str, Any]) -> None:
    task = find_task(our_name(fact))
    target = task.targets[task.primary]
    graph = task.graph.settings(20)
    expected = fact["graph"]["max_neighbors"]
    assert graph.cutoff == fact["graph"]["cutoff"]
    assert (graph.main, graph.a2ee2a, graph.qint, graph.a2a) == tuple(
        expected[name] for name in ("main", "aeaint", "qint", "aint")
    )
    assert task.batch_size == fact["batch_size"]["config_a"]
    assert target.report_scale == fact["report_scale"]
    p, q = task.published, fact["published"]
    assert p is not None
    assert (p.scratch_small, p.scratch_large, p.jmp_small, p.jmp_large) == (
        q["gn_oc_s"], q["gn_oc_l"], q["jmp_s"], q["jmp_l"],
    )  # fmt: skip
    assert (p.jmp_small_folds, p.jmp_large_folds) == (q.get("jmp_s_mean5"), q.get("jmp_l_mean5"))
    if fact["kind"] == "force":
        assert task.forces == fact["forces"]["config_a"]
        assert target.coefficient == fact["loss"]["force"]
        assert target.std == fact["normalization"]["force"]["std"]
        assert task.targets["energy"].coefficient == 0.0
    elif fact["dataset"] == "matbench":
        assert [target.of_fold("mean", k) for k in range(5)] == [f["mean"] for f in fact["normalization"]["per_fold"]]
        assert [target.of_fold("std", k) for k in range(5)] == [f["std"] for f in fact["normalization"]["per_fold"]]
        assert target.reduction == fact["reduction"]
        assert task.folds == 5
    elif fact["head"] != "spatial_extent":
        assert (target.mean, target.std) == tuple(fact["normalization"]["y"].values())
        assert target.reduction == fact["reduction"]
    else:
        assert target.kind == "extent"


@needs_shared
def test_published_numbers_give_the_papers_headline() -> None:
    """59 % better than from scratch on average: the transcription is whole."""

    def improvement(new: str, old: str) -> float:
        ratios = [1.0 - getattr(task.published, new) / getattr(task.published, old) for task in paper_tasks()]
        return 100.0 * sum(ratios) / len(ratios)

    assert improvement("jmp_large", "scratch_large") == pytest.approx(58.7, abs=0.05)
    assert improvement("scratch_large", "scratch_small") == pytest.approx(-8.2, abs=0.05)
    assert improvement("jmp_large", "jmp_small") == pytest.approx(21.1, abs=0.05)


def test_qm9_references_are_the_published_ones() -> None:
    assert find_task("qm9:U0").targets["U0"].references == {
        "H": -16.43,
        "C": -1036.0,
        "N": -1489.8,
        "O": -2047.0,
        "F": -2717.5,
    }
    assert find_task("qm9:mu").targets["mu"].references is None


def test_several_tasks_become_one() -> None:
    both = find_task("qm9:gap,U0")
    assert (both.name, both.primary, [*both.targets]) == ("qm9:gap,U0", "gap", ["gap", "U0"])
    assert both.published is None
    with pytest.raises(ManifestError, match="different structures"):
        find_task("rmd17:aspirin,ethanol")
    with pytest.raises(ManifestError, match="named twice"):
        find_task("qm9:gap,gap")


def test_forces_can_be_made_in_another_way() -> None:
    assert find_task("rmd17:aspirin").with_forces("direct").forces == "direct"
    with pytest.raises(ManifestError, match="qm9:mu has no forces"):
        find_task("qm9:mu").with_forces("direct")


@pytest.mark.parametrize("task", paper_tasks(), ids=lambda task: task.name)
def test_every_task_builds_its_heads(task: TaskSpec) -> None:
    with torch.device("meta"):
        model = build_model(task, preset("small"))
    learned = {"energy" if t.kind == "energy" else name for name, t in task.targets.items() if t.kind != "forces"}
    learned |= {"forces"} if task.forces == "direct" else set()
    assert set(model.heads) == learned
    assert model.forces_from_gradient == (task.forces == "gradient")
    assert model.config.direct_forces == (task.forces == "direct")


def test_large_crystals_keep_fewer_neighbours() -> None:
    graph = find_task("qmof:bandgap").graph
    assert [graph.settings(n).main for n in (10, 200, 201, 300, 301)] == [30, 30, 10, 10, 5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qm9:enthalpy", "qm9 has qm9:mu, qm9:alpha"),
        ("rmd17:water", "rmd17 has rmd17:aspirin"),
        ("qm8:mu", "one of qm9, rmd17"),
        ("mine.yaml", "no such recipe file"),
    ],
)
def test_unknown_tasks_are_named(name: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        find_task(name)


def test_own_task_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    head = "name: mine\ndataset: mine\ngraph: {cutoff: 6.0}\n"
    file.write_text(head + "primary: e\ntargets: {e: {kind: energy, mean: fit, std: fit}}\n")
    assert find_task(str(file)).targets["e"].of_fold("mean", None) is None
    file.write_text(head + "primary: f\ntargets: {e: {kind: energy}}\n")
    with pytest.raises(ManifestError, match="primary names f; the targets are e"):
        find_task(str(file))
    file.write_text(head + "primary: f\ntargets: {f: {kind: forces}}\n")
    with pytest.raises(ManifestError, match="gradient or direct"):
        find_task(str(file))


def test_folds() -> None:
    task = find_task("matbench:mp_gap")
    assert (task.split("train", None), task.split("val", 3)) == ("fold0_train", "fold3_val")
    with pytest.raises(ManifestError, match="folds 0 to 4, not 5"):
        task.split("train", 5)
    with pytest.raises(ManifestError, match="has no folds"):
        find_task("qm9:mu").split("train", 1)
