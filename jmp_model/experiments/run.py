"""Runs an experiment: every variant and seed once, whatever is finished reused, results in one table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmp_data import Mixture, open_dataset
from jmp_data.errors import ManifestError
from jmp_data.overlap import find_overlap, write_overlap
from jmp_model.experiments.spec import ExperimentSpec, MixSpec, PretrainSpec
from jmp_model.finetune.config import load_finetune_config
from jmp_model.finetune.tasks import find_task
from jmp_model.finetune.trainer import SUMMARY_FILE, finetune
from jmp_model.finetune.watcher import FinetuneWatcher
from jmp_model.train.checkpoint import list_checkpoints
from jmp_model.train.config import load_pretrain_config
from jmp_model.train.progress import Watcher
from jmp_model.train.trainer import pretrain

Metrics = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """One variant with one seed.

    Attributes:
        variant: its name.
        seed: of the run.
        metrics: what was measured: test errors of fine-tuning in report units, or validation errors of pre-training.
        units: of each.
    """

    variant: str
    seed: int
    metrics: Metrics
    units: dict[str, str]


@dataclass(frozen=True)
class Watchers:
    """Who is told about the runs of an experiment.

    Attributes:
        message: receives one line for each run.
        pretrain, finetune: passed on to the runs.
    """

    message: Callable[[str], None] = lambda text: None
    pretrain: Watcher | None = None
    finetune: FinetuneWatcher | None = None


class Experiment:
    """Runs variants below a folder.

    Args:
        spec: what to run.
        data: output folder of `jmp-data build`.
        out: where runs and results go.
        seeds: instead of those of the spec.
        overrides: `key=value` settings for fine-tuning, and with the prefix `pretrain:` for pre-training.
        checkpoints: variant → finished pre-training to use instead of making one.
        watchers: told about progress.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        *,
        data: Path,
        out: Path,
        seeds: Sequence[int] | None = None,
        overrides: Sequence[str] = (),
        checkpoints: Mapping[str, Path] | None = None,
        watchers: Watchers | None = None,
    ) -> None:
        self.spec = spec
        self.data = data
        self.out = out
        self.seeds = tuple(seeds) if seeds is not None else spec.seeds
        self.checkpoints = dict(checkpoints or {})
        self.watchers = watchers or Watchers()
        self._pretrain_overrides = [o.removeprefix("pretrain:") for o in overrides if o.startswith("pretrain:")]
        self._finetune_overrides = [o for o in overrides if not o.startswith("pretrain:")]
        unknown = sorted(set(self.checkpoints) - set(spec.variants))
        if unknown:
            raise ManifestError(f"no variant {unknown[0]!r}; the experiment has {', '.join(spec.variants)}")

    def run(self) -> list[Outcome]:
        """Run all variants over all seeds.

        Raises:
            ManifestError: data sets are missing, or settings do not fit.
        """
        return [self._outcome(name, seed) for seed in self.seeds for name in self.spec.variants]

    def _outcome(self, name: str, seed: int) -> Outcome:
        variant = self.spec.variants[name]
        start: Path | None = None
        metrics: Metrics = {}
        units: dict[str, str] = {}
        if variant.pretrain is not None:
            pretraining_seed = seed if self.spec.vary == "both" else self.seeds[0]
            start = self.checkpoints.get(name) or self._pretrained(variant.pretrain, pretraining_seed)
            if self.spec.finetune is None:
                metrics, units = _pretraining_metrics(start)
        if self.spec.finetune is not None:
            metrics, units = self._finetuned(name, seed, start)
        shown = ", ".join(f"{key} {value:.4g} {units[key]}" for key, value in metrics.items())
        self.watchers.message(f"{name}, seed {seed}: {shown}")
        return Outcome(name, seed, metrics, units)

    def _pretrained(self, spec: PretrainSpec, seed: int) -> Path:
        """Run folder of a pre-training; equal ones are run once, whatever variants use them."""
        settings = {**self.spec.pretrain, **spec.settings}
        key = json.dumps(
            [spec.mix.model_dump(), settings, self._pretrain_overrides, self.spec.model, seed], sort_keys=True
        )
        folder = self.out / "pretraining" / hashlib.sha256(key.encode()).hexdigest()[:12]
        run = folder / "run"
        if not _is_finished(run):
            config = load_pretrain_config(
                overrides=[*_as_overrides(settings), *self._pretrain_overrides],
                mix=self._mixture(spec.mix, folder / "mix.yaml"),
                out=run,
                model=self.spec.model,
                seed=seed,
            )
            pretrain(config, resume=bool(list_checkpoints(run)), watcher=self.watchers.pretrain)
        return run

    def _mixture(self, spec: MixSpec, path: Path) -> Path:
        if path.exists():
            return path
        datasets: dict[str, Any] = {name: open_dataset(self.data / name / "train") for name in spec.names}
        exclusions = self._exclusions(datasets, path.parent / "overlap") if spec.without_overlap else None
        return Mixture.from_datasets(datasets, temperature=spec.temperature, exclusions=exclusions).save(path)

    def _exclusions(self, datasets: Mapping[str, Any], folder: Path) -> Path:
        """Structures that the downstream data set holds too."""
        if self.spec.finetune is None:
            raise ManifestError("without_overlap needs a fine-tuning task to compare with")
        task = find_task(self.spec.finetune.task)
        downstream = [open_dataset(path.parent) for path in sorted((self.data / task.folder).glob("*/manifest.json"))]
        return write_overlap(find_overlap(list(datasets.values()), downstream), folder)["exclusions"]

    def _finetuned(self, name: str, seed: int, start: Path | None) -> tuple[Metrics, dict[str, str]]:
        assert self.spec.finetune is not None
        out = self.out / "finetuning" / name / f"seed{seed}"
        settings = {**self.spec.finetune.settings, **self.spec.variants[name].finetune}
        if not (out / SUMMARY_FILE).exists():
            config = load_finetune_config(
                self.spec.finetune.task,
                overrides=[f"data.root={self.data}", *_as_overrides(settings), *self._finetune_overrides],
                out=out,
                model=self.spec.model,
                seed=seed,
                start=start,
            )
            finetune(config, resume=bool(list_checkpoints(out)), watcher=self.watchers.finetune)
        summary = json.loads((out / SUMMARY_FILE).read_text())
        measured = summary["test"] or summary["validation"]
        primary = summary["primary"]
        return {primary: measured[primary]}, {primary: summary["units"][primary]}


def _is_finished(run: Path) -> bool:
    """Whether a pre-training run came to its end; an interrupted one leaves a summary too."""
    if not (run / SUMMARY_FILE).exists():
        return False
    summary = json.loads((run / SUMMARY_FILE).read_text())
    return bool(summary["steps"] == summary["total_steps"])


def _pretraining_metrics(run: Path) -> tuple[Metrics, dict[str, str]]:
    summary = json.loads((run / SUMMARY_FILE).read_text())
    metrics, units = {}, {}
    for task, errors in summary["validation_after"].items():
        for name, unit in (("energy_mae", "eV"), ("force_mae", "eV/Å")):
            metrics[f"{task} {name}"], units[f"{task} {name}"] = errors[name], unit
    return metrics, units


def _as_overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
