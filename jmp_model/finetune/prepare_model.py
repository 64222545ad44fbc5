"""The model of a run before its first step: weights, heads, references and scale factors."""

from __future__ import annotations

from lightning_fabric import Fabric

from jmp_model.finetune.checks import new_backbone
from jmp_model.finetune.config import FinetuneConfig
from jmp_model.finetune.data import Splits, stream, with_graphs
from jmp_model.finetune.model import build_model, keep_heads, load_pretrained, restore_model
from jmp_model.finetune.refit import FAR, distance_from_references, refit_references
from jmp_model.finetune.scales import TargetScale, resolve_scales
from jmp_model.finetune.tasks import TaskSpec
from jmp_model.finetune.watcher import FinetuneWatcher
from jmp_model.gemnet_oc.scaling import fit_scale_factors, scale_factors, unfitted_scales
from jmp_model.model import FineTuningModel
from jmp_model.train.checkpoint import Checkpoint


def prepare_model(
    config: FinetuneConfig,
    splits: Splits,
    start: Checkpoint | None,
    resume: Checkpoint | None,
    watcher: FinetuneWatcher,
    fabric: Fabric,
) -> tuple[FineTuningModel, dict[str, TargetScale]]:
    """Build or restore the model, and the scales of its targets.

    Args:
        config: of the run.
        splits: to fit references, scales and scale factors on.
        start: pre-trained checkpoint, or None.
        resume: checkpoint of this very run, or None.
        watcher: told what was fitted.
        fabric: so that ranks agree.

    Raises:
        ManifestError: settings that do not go together.
        CheckpointError: the checkpoint does not fit.
    """
    task, kept = config.task, config.keep_heads is not None
    if resume is not None:
        return restore_model(resume, str(config.out))
    if start is not None:
        module = build_model(task, start.backbone, kept_heads=kept)
        load_pretrained(module, start, str(config.start))
    else:
        module = build_model(task, new_backbone(config))
    if config.refit_references and not kept:
        task = _with_fits(task)
    scales = resolve_scales(_without_fits(task) if kept else task, config.fold, splits.train)
    if start is not None and config.keep_heads is not None:
        scales |= keep_heads(module, task, start, config.keep_heads, str(config.start))
        scales = _kept_references(config, module, scales, splits, watcher, fabric)
    if unfitted_scales(module):
        batches = _fit_scale_factors(module, config, splits, fabric)
        count = sum(1 for _ in scale_factors(module))
        watcher.message(f"Fitted {count} scale factors on {batches} training batches")
    return module, scales


def _kept_references(
    config: FinetuneConfig,
    module: FineTuningModel,
    scales: dict[str, TargetScale],
    splits: Splits,
    watcher: FinetuneWatcher,
    fabric: Fabric,
) -> dict[str, TargetScale]:
    if config.refit_references:
        found = refit_references(
            module,
            config.task,
            scales,
            splits.train,
            batch_size=config.batch_size,
            first=config.data.train_first,
            device=fabric.device,
        )
        watcher.message("Fitted element references to what the kept energy head leaves unexplained")
        shared: dict[str, TargetScale] = fabric.broadcast(found)
        return shared
    spreads = distance_from_references(config.task, scales, splits.train)
    if spreads > FAR:
        watcher.message(
            f"WARNING: energies of {splits.train.path} lie {spreads:.3g} spreads from the element references of "
            f"{config.keep_heads}: another code or functional? --refit-references fits references to them"
        )
    return scales


def _with_fits(task: TaskSpec) -> TaskSpec:
    """Fit references where the task gives some, and mean and spread of what is left then."""
    changes = {"mean": "fit", "std": "fit", "references": "fit"}
    targets = {
        name: target.model_copy(update=changes) if target.references is not None or target.kind == "energy" else target
        for name, target in task.targets.items()
    }
    return task.model_copy(update={"targets": targets})


def _without_fits(task: TaskSpec) -> TaskSpec:
    """Kept heads bring their scales; do not fit them first."""
    changes = {"mean": 0.0, "std": 1.0, "references": None}
    targets = {
        name: target.model_copy(update=changes) if target.kind in ("energy", "forces") else target
        for name, target in task.targets.items()
    }
    return task.model_copy(update={"targets": targets})


def _fit_scale_factors(module: FineTuningModel, config: FinetuneConfig, splits: Splits, fabric: Fabric) -> int:
    """Fit on the first training batches, whose number is returned."""
    epoch = stream(
        splits.train,
        config.task,
        batch_size=config.batch_size,
        first=config.data.train_first,
        shuffle=True,
        seed=config.seed,
    )
    limited = zip(with_graphs(epoch, config.task.graph), range(config.scale_batches), strict=False)
    batches = [batch.clone() for batch, _ in limited]
    fitted = fabric.broadcast(fit_scale_factors(module, batches))
    for name, factor in scale_factors(module):
        factor.set(fitted[name])
    return len(batches)
