"""Running all cases of a parity directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError

from jmp_data.errors import InvalidStructureError, JmpDataError, MissingFileError, RawFileError
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.kernels import build_kernels, measure
from jmp_model.gemnet_oc.scaling import fit_scale_factors
from jmp_model.gemnet_oc.topology import build_topology
from jmp_model.model import FineTuningModel, PretrainingModel
from jmp_model.parity.angles import compare_angles, has_rounding_noise
from jmp_model.parity.edges import DIFFERENT, compare_built_graphs, compare_geometry, has_ties
from jmp_model.parity.features import compare_bases, compare_gradients, compare_outputs
from jmp_model.parity.fixtures import (
    DTYPES,
    Arrays,
    Errors,
    ParityConfig,
    Precision,
    build_graphs,
    find_cases,
    graph_settings,
    load_finetuning_model,
    load_parity_config,
    load_pretraining_model,
    read_inputs,
    relative_error,
)
from jmp_model.parity.functions import compare_functions

Cases = dict[str, Errors]
ExtraCases = Callable[[Path, torch.dtype], Cases]
"""More cases to merge, such as a replayed training run: directory and floating-point type → case → array → error."""

_SCALE_BATCHES = ("slab", "molecules", "skewed")
"""The files whose scale factors `config.json` lists, in the order in which they were fitted."""


@dataclass
class ParityReport:
    """Errors of all cases, and what was left out on purpose.

    Attributes:
        cases: case → array → largest deviation over the stored array's largest magnitude.
        skipped: case → why some of it was not compared.
    """

    cases: Cases = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def max_error(self) -> float:
        """The largest error of all."""
        return max((error for errors in self.cases.values() for error in errors.values()), default=0.0)


def run_parity(directory: Path, dtype: Precision = "float64", *, extra: Sequence[ExtraCases] = ()) -> Cases:
    """Compare this implementation with stored numbers.

    Args:
        directory: laid out like the project's parity fixtures; weights, sizes and structures may be others.
        dtype: precision of weights and positions.
        extra: functions that give more cases.

    Returns:
        Case → array → error, relative to the array's largest magnitude; 1 where sets of edges differ.

    Raises:
        MissingFileError: the directory has no configuration, weights or cases.
    """
    return run_parity_report(directory, dtype, extra=extra).cases


def run_parity_report(
    directory: Path, dtype: Precision = "float64", *, extra: Sequence[ExtraCases] = ()
) -> ParityReport:
    """`run_parity` with a list of what was skipped and why."""
    directory = Path(directory)
    config = load_parity_config(directory)
    # torch 2.13 on CPU: the first threaded float64 exp of a process can be off by 3e-9.
    torch.exp(torch.ones(1 << 16, dtype=torch.float64))
    # The stored float64 numbers have the original's rounding of collinear dihedrals in them; in float32 that is noise.
    collinear = "as_computed" if dtype == "float64" else "right_angle"
    model = load_pretraining_model(directory, dtype, collinear=collinear)
    finetuning: FineTuningModel | None = None
    report = ParityReport()
    for case, arrays, kind in find_cases(directory):
        with _naming(directory / f"{case}.npz"):
            if kind == "functions":
                report.cases[case] = compare_functions(arrays, dtype)
            elif kind == "system":
                report.cases[case] = _compare_system(model, arrays, config, case, dtype, report)
            elif kind == "finetune":
                finetuning = finetuning or load_finetuning_model(directory, dtype, collinear=collinear)
                report.cases[case] = _compare_finetuning(finetuning, arrays, config, case, dtype, report)
            else:
                report.skipped[case] = "holds none of the known sets of arrays"
    if not report.cases:
        raise MissingFileError(f"{directory} holds no parity case (*.npz)")
    report.cases |= _compare_fitted_scales(model, directory, config, dtype, report)
    for more in extra:
        with _naming(directory):
            found = more(directory, DTYPES[dtype])
        # JSON has no word for infinity.
        report.cases |= {
            case: {name: error if math.isfinite(error) else DIFFERENT for name, error in errors.items()}
            for case, errors in found.items()
        }
    return report


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Failures inside speak of that file."""
    try:
        yield
    except InvalidStructureError as error:
        raise RawFileError(f"{path}: {error}") from error
    except KeyError as error:
        raise RawFileError(f"{path}: lacks the array {error}") from error
    except (IndexError, ValueError, RuntimeError, TypeError, EOFError, BadZipFile, SafetensorError) as error:
        if isinstance(error, JmpDataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise RawFileError(
            f"{path}: something in it is damaged or fits neither the rest nor the model ({reason})"
        ) from error


def _compare_system(
    model: PretrainingModel, arrays: Arrays, config: ParityConfig, case: str, dtype: Precision, report: ParityReport
) -> Errors:
    errors: Errors = {}
    if has_ties(arrays, (config.periodic.main, config.periodic.a2ee2a, config.periodic.qint)):
        _note(
            report,
            case,
            "building its graphs: truncation cuts shells of equally distant neighbours, where the original left the "
            "choice to an unstable sort; the stored graphs are used",
        )
    else:
        errors |= _compare_building(arrays, config, case, report)
    inputs = read_inputs(arrays, dtype)
    bases = model.backbone.bases
    topology = build_topology(inputs.graphs, inputs.positions.shape[0])
    geometry = measure(topology, inputs.positions, inputs.cell, inputs.batch)
    with torch.no_grad():
        kernels = build_kernels(bases, topology, geometry, collinear=model.config.collinear)
        found, orders = compare_geometry(topology, geometry, arrays)
        errors |= found | compare_angles(topology, geometry, arrays, orders, collinear=model.config.collinear)
        errors |= compare_bases(bases, kernels, geometry, topology, arrays, orders)
    outputs = compare_outputs(model, inputs, topology, arrays, orders)
    outputs |= compare_gradients(model, inputs, topology, arrays)
    if dtype == "float32" and has_rounding_noise(topology, geometry):
        _note(
            report,
            case,
            "what depends on quadruplets in float32: dihedrals of collinear atoms are rounding noise in the original "
            f"and exact right angles here, which differ from its float64 numbers by up to {max(outputs.values()):.1e}",
        )
        return errors
    return errors | outputs


def _note(report: ParityReport, case: str, reason: str) -> None:
    report.skipped[case] = "; ".join(filter(None, [report.skipped.get(case), reason]))


def _compare_finetuning(
    model: FineTuningModel, arrays: Arrays, config: ParityConfig, case: str, dtype: Precision, report: ParityReport
) -> Errors:
    errors = _compare_building(arrays, config, case, report)
    out = model(read_inputs(arrays, dtype))
    stored = {"energy": out["energy"], "gradient_forces": out["forces"]}
    return errors | {name: relative_error(value, arrays[name]) for name, value in stored.items() if name in arrays}


def _compare_building(arrays: Arrays, config: ParityConfig, case: str, report: ParityReport) -> Errors:
    settings = graph_settings(arrays, config, case)
    if settings is None:
        _note(report, case, "building its graphs: config.json names no settings for it; the stored graphs are used")
        return {}
    return compare_built_graphs(build_graphs(arrays, settings), arrays)


def _compare_fitted_scales(
    model: PretrainingModel, directory: Path, config: ParityConfig, dtype: Precision, report: ParityReport
) -> Cases:
    if not config.fitted_scales:
        return {}
    cases = {case: arrays for case, arrays, _ in find_cases(directory) if case in _SCALE_BATCHES}
    if len(cases) < len(_SCALE_BATCHES):
        report.skipped["fitted_scales"] = f"the values were fitted on {', '.join(_SCALE_BATCHES)}, not all of them here"
        return {}
    batches: list[ModelInputs] = [read_inputs(cases[case], dtype) for case in _SCALE_BATCHES]
    fitted = fit_scale_factors(model, batches)
    return {
        "fitted_scales": {
            name: relative_error(fitted.get(f"backbone.{name}", 0.0), value)
            for name, value in config.fitted_scales.items()
        }
    }


__all__ = ["ExtraCases", "ParityReport", "run_parity", "run_parity_report"]
