"""Scale factors of a model that is to be trained from scratch: fitted on a mixture, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jmp_data import Mixture
from jmp_data.errors import CheckpointError
from jmp_model.gemnet_oc.scaling import fit_scale_factors, scale_factors
from jmp_model.model import PretrainingModel
from jmp_model.train.config import PretrainConfig
from jmp_model.train.data import training_stream
from jmp_model.train.setup import model_config

FORMAT = "jmp-scales"
FORMAT_VERSION = 1
_BACKBONE = "backbone."


@dataclass(frozen=True)
class FittedScales:
    """Scale factors and what they were fitted on.

    Attributes:
        backbone: configuration of the model.
        factors: module path below the backbone → factor, as in the published scale files.
        mixture_fingerprint: of the data.
        batches, batch_size, seed: of the fit; the seed makes the weights too.
    """

    backbone: Mapping[str, Any]
    factors: Mapping[str, float]
    mixture_fingerprint: str
    batches: int
    batch_size: int
    seed: int


@dataclass
class _FirstBatches:
    """The first training batches without edge dropout, read anew in every pass.

    Attributes:
        count: how many there were in the last pass; an epoch may have fewer than the recipe asks for.
    """

    mixture: Mixture
    config: PretrainConfig
    count: int = 0

    def __iter__(self) -> Iterator[Any]:
        settings = self.config.data.model_copy(update={"edge_dropout": 0.0})
        stream = training_stream(self.mixture, settings, seed=self.config.seed)
        self.count = 0
        for batch in islice(iter(stream), self.config.scale_batches):
            self.count += 1
            yield batch


def fit_scales(config: PretrainConfig, *, on_stage: Callable[[int, int], None] | None = None) -> FittedScales:
    """Fit the scale factors that a pre-training run with this recipe would fit for itself.

    Args:
        config: recipe; its mixture, model, seed, batch size and `scale_batches` count.
        on_stage: told (stages done, stages).

    Raises:
        CheckpointError: a layer saw nothing to be fitted on, such as quadruplets.
    """
    mixture = Mixture.load(config.mix)
    torch.manual_seed(config.seed)
    model = PretrainingModel(model_config(config), tasks=mixture.names)
    batches = _FirstBatches(mixture, config)
    fitted = fit_scale_factors(model, batches, on_stage=on_stage)
    return FittedScales(
        backbone=model.config.to_dict(),
        factors={name.removeprefix(_BACKBONE): value for name, value in fitted.items()},
        mixture_fingerprint=mixture.fingerprint,
        batches=batches.count,
        batch_size=config.data.batch_size,
        seed=config.seed,
    )


def write_scales(scales: FittedScales, path: Path) -> None:
    """Write as JSON; the file appears whole or not at all."""
    content = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(scales)}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def read_scales(path: Path) -> FittedScales:
    """Read what `write_scales` wrote.

    Raises:
        CheckpointError: it is no such file, or of a newer version.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no readable file of scale factors ({error})") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: not a file of scale factors; `jmp fit-scales` makes one")
    if content.pop("version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: its format is newer than this code; upgrade jmp-data")
    return FittedScales(**content)


def apply_scales(model: nn.Module, scales: FittedScales) -> None:
    """Set the factors of a model with a backbone.

    Raises:
        CheckpointError: they are those of another model.
    """
    own = {name.partition(_BACKBONE)[2]: factor for name, factor in scale_factors(model)}
    if own.keys() != scales.factors.keys():
        differ = sorted(own.keys() ^ scales.factors.keys())
        raise CheckpointError(f"scale factors of another model: {len(differ)} differ, first {differ[0]}")
    for name, factor in own.items():
        factor.set(scales.factors[name])
