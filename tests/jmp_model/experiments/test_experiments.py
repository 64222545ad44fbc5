"""Experiments: what is run, what is reused, and how variants are compared."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from jmp_data.errors import ManifestError
from jmp_model.experiments.compare import as_markdown, compare, write_results
from jmp_model.experiments.run import Experiment, Outcome, Watchers, with_changes
from jmp_model.experiments.runs import ExperimentStoppedError, read_summary, run_all_finetunings
from jmp_model.experiments.spec import ExperimentSpec, experiment_names, load_experiment
from jmp_model.train.checkpoint import latest_checkpoint, read_checkpoint
from jmp_model.weights.convert import export_released
from tests.jmp_model.finetune.small_tasks import force_task, write_splits
from tests.jmp_model.train.small_runs import SMALLEST, write_mixture

SHIPPED = experiment_names()
CPU = {"hardware.accelerator": "cpu", "hardware.devices": 1, "model_changes": SMALLEST, "scale_batches": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_mixture(root, train=8, val=4)
    return write_splits(root)


def make_spec(tmp_path: Path, **changes) -> ExperimentSpec:
    task = tmp_path / "task.yaml"
    task.write_text(json.dumps(force_task().model_dump(mode="json")))
    mix = {"mix": {"datasets": ["molecules", "metals"]}}
    settings = {
        "title": "Small",
        "question": "Does it run?",
        "baseline": "scratch",
        "seeds": [0, 1],
        "pretrain": {**CPU, "schedule.steps": 2, "data.batch_size": 4, "data.graphs": {}},
        "finetune": {"task": str(task), "settings": {**CPU, "schedule.max_steps": 2, "report": False}},
        "variants": {"scratch": {}, "tuned": {"pretrain": mix}},
    }
    return ExperimentSpec.model_validate(settings | changes)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_experiments_are_whole(name: str) -> None:
    spec = load_experiment(name)
    assert len(spec.seeds) >= 3
    assert "?" in spec.question


def test_unknown_experiment() -> None:
    with pytest.raises(ManifestError, match="no experiment 'nothing': choose one of force_loss"):
        load_experiment("nothing")


def test_pretraining_is_shared_and_finished_runs_are_reused(data: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    lines: list[str] = []
    experiment = Experiment(spec, data=data, out=tmp_path / "out", watchers=Watchers(message=lines.append))
    outcomes = experiment.run()
    assert [(o.variant, o.seed) for o in outcomes] == [("scratch", 0), ("tuned", 0), ("scratch", 1), ("tuned", 1)]
    assert len(list((tmp_path / "out" / "pretraining").iterdir())) == 1
    results = ["scratch, seed 0", "tuned, seed 0", "scratch, seed 1", "tuned, seed 1"]
    assert [line.split(":")[0] for line in lines if "seed" in line] == results
    assert [line for line in lines if "seed" not in line] == [f"{n} of 4 fine-tuning runs done" for n in range(1, 5)]
    stamp = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    assert experiment.run() == outcomes
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == stamp


def test_a_finished_pretraining_can_be_given(data: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0])
    first = Experiment(spec, data=data, out=tmp_path / "first")
    first.run()
    run = next((tmp_path / "first" / "pretraining").iterdir()) / "run"
    second = Experiment(spec, data=data, out=tmp_path / "second", checkpoints={"tuned": run})
    assert second.run() == first.run()
    assert not (tmp_path / "second" / "pretraining").exists()
    folder = latest_checkpoint(run)
    third = Experiment(spec, data=data, out=tmp_path / "third", checkpoints={"tuned": folder})
    assert third.run() == first.run()
    released = tmp_path / "released.pt"
    export_released(read_checkpoint(folder), released)
    fourth = Experiment(spec, data=data, out=tmp_path / "fourth", checkpoints={"tuned": released})
    assert [o.metrics for o in fourth.run()] == [pytest.approx(o.metrics, rel=1e-5) for o in first.run()]
    with pytest.raises(ManifestError, match="no finished pre-training; give the run folder"):
        Experiment(spec, data=data, out=tmp_path / "fifth", checkpoints={"tuned": run / "checkpoints"})
    with pytest.raises(ManifestError, match="no variant 'other' that is pre-trained; the experiment has tuned"):
        Experiment(spec, data=data, out=tmp_path / "third", checkpoints={"other": run})


def test_pretraining_alone_is_compared_by_validation_errors(data: Path, tmp_path: Path) -> None:
    both = {"datasets": ["molecules", "metals"]}
    one = {**both, "leave_out": ["metals"]}
    spec = make_spec(
        tmp_path,
        seeds=[0],
        vary="both",
        finetune=None,
        baseline="both",
        variants={"both": {"pretrain": {"mix": both}}, "one": {"pretrain": {"mix": one}}},
    )
    outcomes = Experiment(spec, data=data, out=tmp_path / "out").run()
    assert outcomes[0].metrics.keys() == {f"{d} {m}_mae" for d in ("molecules", "metals") for m in ("energy", "force")}
    assert outcomes[1].metrics.keys() == {"molecules energy_mae", "molecules force_mae"}
    rows = compare(spec, outcomes)
    assert [row.metric for row in rows if row.variant == "one"] == ["molecules energy_mae", "molecules force_mae"]


def test_comparison_by_hand(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0, 1, 2])
    unit = {"forces": "meV/Å"}
    values = {"scratch": (100.0, 200.0, 400.0), "tuned": (50.0, 150.0, 200.0)}
    outcomes = [Outcome(v, seed, {"forces": values[v][seed]}, unit) for seed in range(3) for v in values]
    rows = {row.variant: row for row in compare(spec, outcomes)}
    assert rows["tuned"].improvements == pytest.approx((0.5, 0.25, 0.5))
    assert rows["tuned"].improvement == pytest.approx(1.25 / 3)
    assert rows["tuned"].improvement_spread == pytest.approx(0.1443, abs=1e-4)
    assert (rows["scratch"].mean, rows["scratch"].improvements) == (pytest.approx(700 / 3), ())
    text = as_markdown(spec, list(rows.values()))
    assert "| tuned | forces | 133.3 ± 76 meV/Å | 41.7 ± 14.4 % |" in text
    files = write_results(tmp_path, spec, outcomes, list(rows.values()))
    assert files["png"].stat().st_size > 5000
    with files["csv"].open() as stream:
        assert [row["variant"] for row in csv.DictReader(stream)] == ["scratch", "tuned"]


def test_each_variant_takes_the_rate_that_is_best_on_validation(data: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    assert spec.finetune is not None
    rated = spec.finetune.model_copy(update={"tiny_rates": (1e-9, 3e-3)})
    lines: list[str] = []
    chosen = spec.model_copy(update={"finetune": rated})
    outcomes = Experiment(chosen, data=data, out=tmp_path / "out", watchers=Watchers(message=lines.append)).run()
    for variant in spec.variants:
        tried = [read_summary(run) for run in (tmp_path / "out" / "finetuning").glob(f"{variant}-seed0-*")]
        errors = sorted(summary["validation"]["forces"] for summary in tried if summary)
        mine = [outcome for outcome in outcomes if outcome.variant == variant]
        assert len(errors) == 2
        assert min(error for _, error in mine[0].curve) == pytest.approx(errors[0])
        assert len({outcome.base_lr for outcome in mine}) == 1
    assert len([line for line in lines if "by validation" in line]) == 2


def test_other_settings_make_other_runs(data: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0])
    first = Experiment(spec, data=data, out=tmp_path / "out").run()
    second = Experiment(spec, data=data, out=tmp_path / "out", overrides=["schedule.max_steps=3"]).run()
    third = Experiment(spec, data=data, out=tmp_path / "out", overrides=["pretrain:schedule.steps=3"]).run()
    assert first[0].curve[-1][0] == 2
    assert second[0].curve[-1][0] == 3
    assert third[0] == first[0]
    assert third[1] != first[1]


def test_runs_in_other_processes_give_the_same(data: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0])
    alone = Experiment(spec, data=data, out=tmp_path / "alone").run()
    together = Experiment(spec, data=data, out=tmp_path / "together", workers=2).run()
    for one, other in zip(alone, together, strict=True):
        assert one.metrics["forces"] == pytest.approx(other.metrics["forces"], rel=1e-4)


def test_an_interrupted_run_stops_the_experiment_and_is_gone_on_with(data: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, seeds=[0])
    with pytest.raises(ExperimentStoppedError, match="the same command goes on from there"):
        Experiment(spec, data=data, out=tmp_path / "out", overrides=["hardware.max_hours=1e-9"]).run()
    assert [o.curve[-1][0] for o in Experiment(spec, data=data, out=tmp_path / "out").run()] == [2, 2]


def test_nothing_to_run_needs_no_processes() -> None:
    assert run_all_finetunings([], workers=2) == []


def test_width_changes_pretraining_and_scratch_alike(data: Path, tmp_path: Path) -> None:
    both = {"datasets": ["molecules", "metals"]}
    changes = {name: value for name, value in CPU.items() if name != "model_changes"}
    settings = {**changes, "schedule.max_steps": 1, "report": False}
    spec = make_spec(
        tmp_path,
        seeds=[0],
        pretrain={**changes, "schedule.steps": 1, "data.batch_size": 4, "data.graphs": {}},
        finetune={"task": str(tmp_path / "task.yaml"), "settings": settings},
        variants={"scratch": {"width": 0.25}, "tuned": {"width": 0.25, "pretrain": {"mix": both}}},
    )
    Experiment(spec, data=data, out=tmp_path / "out").run()
    models = [read_summary(run) for run in (tmp_path / "out" / "finetuning").iterdir()]
    assert [summary["model"]["emb_size_edge"] for summary in models if summary] == [16, 16]


def test_other_model_and_seeds() -> None:
    spec = with_changes(load_experiment("temperature"), model="small", seeds=[4, 5])
    assert (spec.model, spec.seeds) == ("small", (4, 5))
    with pytest.raises(ValueError, match="at least one seed"):
        with_changes(spec, seeds=[])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "nobody"}, "baseline names nobody"),
        ({"finetune": None}, "without pre-training needs fine-tuning"),
        ({"seeds": []}, "at least one seed"),
    ],
)
def test_bad_experiments(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_spec(tmp_path, **changes)
