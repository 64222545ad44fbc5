"""Runs an experiment: every variant and seed once, whatever is finished reused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jmp_data import Mixture, open_dataset
from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.overlap import find_overlap, write_overlap
from jmp_model.experiments.runs import (
    Summary,
    read_summary,
    run_all_finetunings,
    run_pretraining,
    settings_key,
)
from jmp_model.experiments.spec import ExperimentSpec, FinetuneSpec, MixSpec, Variant
from jmp_model.finetune.config import FinetuneConfig, load_finetune_config
from jmp_model.finetune.data import open_splits
from jmp_model.finetune.tasks import TaskSpec, find_task
from jmp_model.finetune.watcher import FinetuneWatcher
from jmp_model.presets import preset
from jmp_model.train.checkpoint import STATE_FILE
from jmp_model.train.config import PretrainConfig, load_pretrain_config
from jmp_model.train.metrics_log import read_rows
from jmp_model.train.progress import Watcher

PRETRAIN_PREFIX = "pretrain:"
_SCALED_SIZES = ("emb_size_atom", "emb_size_edge")


@dataclass(frozen=True)
class Outcome:
    """One variant with one seed.

    Attributes:
        variant: its name.
        seed: of the run.
        metrics: what was measured: test errors of fine-tuning in report units, or validation errors of pre-training.
        units: of each.
        base_lr: of fine-tuning; None where only pre-training is compared.
        curve: (steps, validation error) of fine-tuning.
    """

    variant: str
    seed: int
    metrics: dict[str, float]
    units: dict[str, str]
    base_lr: float | None = None
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Watchers:
    """Who is told about the runs of an experiment.

    Attributes:
        message: receives one line for each run.
        pretrain, finetune: passed on to the runs; to those of fine-tuning only if they are made one at a time.
    """

    message: Callable[[str], None] = lambda text: None
    pretrain: Watcher | None = None
    finetune: FinetuneWatcher | None = None


class Experiment:
    """Runs variants below a folder.

    Args:
        spec: what to run.
        data: output folder of `jmp-data build`.
        out: where runs and results go. Folders of runs are named after their settings, so that other settings make
            other runs.
        overrides: `key=value` settings for fine-tuning, and with the prefix `pretrain:` for pre-training.
        checkpoints: variant → run folder of a finished pre-training to use instead of making one; where fine-tuned
            models are compared, a checkpoint folder or released file too.
        workers: fine-tuning runs at a time, each with one thread.
        watchers: told about progress.

    Raises:
        ManifestError: a checkpoint for a variant that does not pre-train, or one that is not finished.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        *,
        data: Path,
        out: Path,
        overrides: Sequence[str] = (),
        checkpoints: Mapping[str, Path] | None = None,
        workers: int = 1,
        watchers: Watchers | None = None,
    ) -> None:
        self.spec = spec
        self.data = data.resolve()
        self.out = out.resolve()
        self.checkpoints = {name: run.resolve() for name, run in (checkpoints or {}).items()}
        self.workers = workers
        self.watchers = watchers or Watchers()
        self._pretrain_overrides = [o.removeprefix(PRETRAIN_PREFIX) for o in overrides if o.startswith(PRETRAIN_PREFIX)]
        self._finetune_overrides = [o for o in overrides if not o.startswith(PRETRAIN_PREFIX)]
        _check_checkpoints(spec, self.checkpoints)

    def run(self) -> list[Outcome]:
        """Run all variants over all seeds.

        Raises:
            ManifestError: data sets are missing, or settings do not fit; before anything is run.
            ExperimentStoppedError: a run was interrupted; the next call goes on from there.
        """
        self._check()
        pairs = [(name, seed) for seed in self.spec.seeds for name in self.spec.variants]
        starts = {pair: self._start(*pair) for pair in pairs}
        if self.spec.finetune is None:
            return [self._tell(_pretraining_outcome(*pair, start)) for pair, start in starts.items() if start]
        rates = self._chosen_rates(self.spec.finetune, starts)
        configs = [self._finetuning(*pair, starts[pair], rates[pair[0]]) for pair in pairs]
        summaries = self._finetune_all(configs)
        return [
            self._tell(_finetuning_outcome(*pair, config, summary))
            for pair, config, summary in zip(pairs, configs, summaries, strict=True)
        ]

    def _check(self) -> None:
        """Find what would stop a later run."""
        first = self.spec.seeds[0]
        for name, variant in self.spec.variants.items():
            if variant.pretrain is not None and name not in self.checkpoints:
                self._pretraining_config(variant, first, Path("mix.yaml"), Path("run"))
                self._open(variant.pretrain.mix)
            if self.spec.finetune is not None:
                config = self._finetuning(name, first, None, None)
                open_splits(config.task, config.data, config.fold)

    def _open(self, spec: MixSpec) -> dict[str, Any]:
        datasets = {}
        for name in spec.names:
            try:
                datasets[name] = open_dataset(self.data / name / "train")
            except MissingFileError as error:
                raise ManifestError(
                    f"{self.data}: no training split of {name}; make it with `jmp-data build {name} --out {self.data}`"
                ) from error
        return datasets

    def _tell(self, outcome: Outcome) -> Outcome:
        shown = ", ".join(f"{key} {value:.4g} {outcome.units[key]}" for key, value in outcome.metrics.items())
        self.watchers.message(f"{outcome.variant}, seed {outcome.seed}: {shown}")
        return outcome

    def _start(self, name: str, seed: int) -> Path | None:
        """Run folder of the finished pre-training, or checkpoint, that a variant starts from."""
        variant = self.spec.variants[name]
        if variant.pretrain is None:
            return None
        if name in self.checkpoints:
            return self.checkpoints[name]
        return self._pretrained(variant, seed if self.spec.vary == "both" else self.spec.seeds[0])

    def _pretrained(self, variant: Variant, seed: int) -> Path:
        """Run a pre-training; equal ones are run once, whatever variants use them."""
        assert variant.pretrain is not None
        config = self._pretraining_config(variant, seed, Path("mix.yaml"), Path("run"))
        mix = variant.pretrain.mix
        key = settings_key(mix.model_dump(), self.data, _computed(config))
        folder = self.out / "pretraining" / key
        config = self._pretraining_config(variant, seed, self._mixture(mix, folder), folder / "run")
        run_pretraining(config, self.watchers.pretrain)
        return config.out

    def _pretraining_config(self, variant: Variant, seed: int, mix: Path, out: Path) -> PretrainConfig:
        assert variant.pretrain is not None
        settings = {**self.spec.pretrain, **(self.spec.tiny_pretrain if self._is_tiny else {})}
        settings |= {**self._widths(variant), **variant.pretrain.settings}
        return load_pretrain_config(
            overrides=[*_as_overrides(settings), *self._pretrain_overrides],
            mix=mix,
            out=out,
            model=self.spec.model,
            seed=seed,
        )

    def _mixture(self, spec: MixSpec, folder: Path) -> Path:
        path = folder / "mix.yaml"
        if path.exists():
            return path
        datasets = self._open(spec)
        exclusions = self._exclusions(datasets, folder / "overlap") if spec.without_overlap else None
        return Mixture.from_datasets(datasets, temperature=spec.temperature, exclusions=exclusions).save(path)

    def _exclusions(self, datasets: Mapping[str, Any], folder: Path) -> Path:
        """Structures that the downstream data set holds too."""
        if self.spec.finetune is None:
            raise ManifestError("without_overlap needs a fine-tuning task to compare with")
        root = self.data / self._task.folder
        downstream = [open_dataset(path.parent) for path in sorted(root.glob("*/manifest.json"))]
        return write_overlap(find_overlap(list(datasets.values()), downstream), folder)["exclusions"]

    def _chosen_rates(
        self, spec: FinetuneSpec, starts: Mapping[tuple[str, int], Path | None]
    ) -> dict[str, float | None]:
        """The base learning rate of each variant: the one with the lowest validation error of the first seed."""
        first = self.spec.seeds[0]
        if not (self._is_tiny and spec.tiny_rates):
            return dict.fromkeys(self.spec.variants)
        tried = [(name, rate) for name in self.spec.variants for rate in spec.tiny_rates]
        configs = [self._finetuning(name, first, starts[name, first], rate) for name, rate in tried]
        errors = {
            pair: summary["validation"][summary["primary"]] * (-1.0 if self._task.higher_is_better else 1.0)
            for pair, summary in zip(tried, self._finetune_all(configs), strict=True)
        }
        chosen: dict[str, float | None] = {}
        for name in self.spec.variants:
            chosen[name] = min(spec.tiny_rates, key=lambda rate: errors[name, rate])
            shown = ", ".join(f"{rate:g}: {abs(errors[name, rate]):.4g}" for rate in spec.tiny_rates)
            self.watchers.message(f"{name}: learning rate {chosen[name]:g} by validation ({shown})")
        return chosen

    def _finetune_all(self, configs: Sequence[FinetuneConfig]) -> list[Summary]:
        return run_all_finetunings(
            configs,
            workers=self.workers,
            watcher=self.watchers.finetune,
            progress=lambda done, total: self.watchers.message(f"{done} of {total} fine-tuning runs done"),
        )

    def _finetuning(self, name: str, seed: int, start: Path | None, rate: float | None) -> FinetuneConfig:
        spec, variant = self.spec.finetune, self.spec.variants[name]
        assert spec is not None
        settings = {**spec.settings, **(spec.tiny if self._is_tiny else {}), **variant.finetune}
        if variant.pretrain is None:
            settings |= self._widths(variant)
        if rate is not None:
            settings["optimizer.base_lr"] = rate
        config = load_finetune_config(
            self._task,
            overrides=[f"data.root={self.data}", *_as_overrides(settings), *self._finetune_overrides],
            out=Path("run"),
            model=self.spec.model,
            seed=seed,
            start=start,
        )
        key = settings_key(_computed(config), None if start is None else _identity(start))
        slug = re.sub(r"[^\w.]+", "-", name)
        return config.model_copy(update={"out": self.out / "finetuning" / f"{slug}-seed{seed}-{key}"})

    def _widths(self, variant: Variant) -> dict[str, Any]:
        if variant.width == 1.0:
            return {}
        base = preset(self.spec.model)
        sizes = {name: max(1, round(getattr(base, name) * variant.width)) for name in _SCALED_SIZES}
        return {"model_changes": sizes}

    @cached_property
    def _task(self) -> TaskSpec:
        spec = self.spec.finetune
        assert spec is not None
        task = find_task(spec.task)
        return task if spec.tiny_forces is None or not self._is_tiny else task.with_forces(spec.tiny_forces)

    @property
    def _is_tiny(self) -> bool:
        return self.spec.model == "tiny"


def with_changes(
    spec: ExperimentSpec, *, model: str | None = None, seeds: Sequence[int] | None = None
) -> ExperimentSpec:
    """An experiment with another model or other seeds."""
    changes: dict[str, Any] = {} if model is None else {"model": model}
    if seeds is not None:
        changes["seeds"] = tuple(seeds)
    return ExperimentSpec.model_validate(spec.model_dump() | changes)


def _check_checkpoints(spec: ExperimentSpec, checkpoints: Mapping[str, Path]) -> None:
    for name, run in checkpoints.items():
        if name not in spec.variants or spec.variants[name].pretrain is None:
            able = [other for other, variant in spec.variants.items() if variant.pretrain is not None]
            raise ManifestError(f"no variant {name!r} that is pre-trained; the experiment has {', '.join(able)}")
        is_checkpoint = run.is_file() or (run / STATE_FILE).exists()
        if read_summary(run) is None and not (is_checkpoint and spec.finetune is not None):
            others = "" if spec.finetune is None else ", a checkpoint folder or a released .pt file"
            raise ManifestError(f"{run}: no finished pre-training; give the run folder of jmp train pretrain{others}")


def _computed(config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Settings that change what is computed."""
    return config.model_dump(mode="json", exclude={"hardware", "log_every", "report"})


def _identity(run: Path) -> Summary:
    """What tells a finished pre-training, or a checkpoint, from another one of the same name."""
    summary = read_summary(run)
    if summary is not None:
        return {name: value for name, value in summary.items() if name != "seconds"}
    # The state of a checkpoint folder has the digests of its tensors.
    with (run if run.is_file() else run / STATE_FILE).open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _pretraining_outcome(name: str, seed: int, run: Path) -> Outcome:
    summary = read_summary(run)
    assert summary is not None
    metrics, units = {}, {}
    for task, errors in summary["validation_after"].items():
        for metric, unit in (("energy_mae", "eV"), ("force_mae", "eV/Å")):
            metrics[f"{task} {metric}"], units[f"{task} {metric}"] = errors[metric], unit
    return Outcome(name, seed, metrics, units)


def _finetuning_outcome(name: str, seed: int, config: FinetuneConfig, summary: Summary) -> Outcome:
    primary = summary["primary"]
    measured = summary["test"] or summary["validation"]
    rows = read_rows(config.out, "validation")
    return Outcome(
        variant=name,
        seed=seed,
        metrics={primary: measured[primary]},
        units={primary: summary["units"][primary]},
        base_lr=config.optimizer.base_lr,
        curve=tuple((row["step"], row[primary]) for row in rows if row.get(primary) is not None),
    )


def _as_overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
