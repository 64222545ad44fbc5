"""`jmp predict`, `checkpoint ...` and `fit-scales`: models from elsewhere, models put to use."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from jmp_data.errors import InvalidStructureError, ManifestError, MissingFileError

from .console import err, find_device, out, print_facts, print_json, print_table, progress

if TYPE_CHECKING:
    from ase import Atoms

    from jmp_data import Structure
    from jmp_model.inference import JMPModel
    from jmp_model.weights.convert import KeyMap

_REFERENCES = "--references"

checkpoint = typer.Typer(name="checkpoint", help="Import, export and inspect checkpoints.", no_args_is_help=True)


class SpreadReferences(TyperCommand):
    """`--references A B C` means the option once for each, up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        spread: list[str] = []
        inside = False
        for arg in args:
            if arg.startswith("-"):
                inside = arg == _REFERENCES
            elif inside and spread[-1] != _REFERENCES:
                spread.append(_REFERENCES)
            spread.append(arg)
        return super().parse_args(ctx, spread)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(predict)
    app.add_typer(checkpoint)
    app.command(name="fit-scales")(fit_scales)


def predict(
    files: Annotated[list[Path], typer.Argument(help="Files that ASE reads; all their structures are taken.")],
    source: Annotated[Path, typer.Option("--from", help="Checkpoint, run folder or released .pt file.")],
    target: Annotated[Path, typer.Option("--out", help="File to write: .extxyz, .xyz, .traj, .db or .json.")],
    task: Annotated[str | None, typer.Option(help="Pre-training task whose heads to use.")] = None,
    weights: Annotated[Literal["ema", "live"], typer.Option(help="Averaged weights where there are any, or live.")] = (
        "ema"
    ),
    forces: Annotated[
        Literal["trained", "gradient"], typer.Option(help="As trained, or minus the derivative of the energy.")
    ] = "trained",
    batch_size: Annotated[int, typer.Option(min=1, help="Structures evaluated together.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Predict energies in eV and forces in eV/Å, and whatever else a model was fine-tuned to give.

    Example: jmp predict relaxed.extxyz more.cif --from run --task oc20 --out predicted.extxyz
    """
    from jmp_model import load_model
    from jmp_model.prediction_files import check_target, write_predictions

    check_target(target)
    for file in files:
        if not file.exists():
            raise MissingFileError(f"{file}: no such file")
    model = load_model(source, task=task, weights=weights, forces=forces, device=find_device(device))
    chosen = model.find_task()
    for remark in chosen.remarks:
        err.print(f"note: {remark}", markup=False)
    begin = time.perf_counter()
    with _warnings_as_lines():
        frames = list(_predict_files(files, model, batch_size))
        write_predictions(target, frames)
    summary = {
        "out": str(target),
        "task": chosen.name,
        "forces": chosen.forces,
        "structures": len(frames),
        "atoms": sum(len(atoms) for atoms in frames),
        "energy_is_relative": chosen.energy_is_relative,
        "seconds": round(time.perf_counter() - begin, 3),
    }
    if as_json:
        print_json(summary)
    else:
        out.print(
            f"{target}: {summary['structures']} structures, {summary['atoms']} atoms, heads of {chosen.name}, "
            f"{summary['seconds']:.1f} s",
            markup=False,
        )


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("once")
        warnings.showwarning = lambda message, *_, **__: err.print(f"warning: {message}", markup=False)
        yield


def _predict_files(files: list[Path], model: JMPModel, batch_size: int) -> Iterator[Atoms]:
    """Structures of all files with what the model predicts for them."""
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator

    task = model.find_task()
    pending: deque[Atoms] = deque()
    with progress("predict", None, "structures") as advance:
        results = model.predict(_structures(files, pending), batch_size=batch_size, stress=task.forces == "gradient")
        for result in results:
            atoms = pending.popleft()
            found = {name: value for name, value in result.items() if name in all_properties}
            atoms.info |= {name: value for name, value in result.items() if name not in all_properties}
            atoms.info["jmp_task"] = task.name
            if task.energy_is_relative:
                atoms.info["energy_reference"] = "none"
            stress = found.pop("stress", None)
            if stress is not None and atoms.cell.rank == 3 and atoms.pbc.any():
                found["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            atoms.calc = SinglePointCalculator(atoms, **found)
            advance(1, "")
            yield atoms


def _structures(files: list[Path], pending: deque[Atoms]) -> Iterator[Structure]:
    """Read one structure after the other, and leave each `Atoms` in `pending` as well."""
    from ase.io import iread

    from jmp_model.inputs import as_structure

    for file in files:
        done = 0
        try:
            for atoms in iread(file, index=":"):
                structure = as_structure(atoms)
                pending.append(atoms)
                yield structure
                done += 1
        except InvalidStructureError as error:
            raise InvalidStructureError(f"{file}: structure {done}: {error}", error.code) from error
        except MemoryError:
            raise
        except Exception as error:
            # ASE has a hundred parsers, each with its own way to fail; some raise OSError where the system did not.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = f"{type(error).__name__}: {error}"
            raise ManifestError(f"{file}: ASE cannot read structure {done}: {reason}") from error
        if not done:
            raise ManifestError(f"{file}: holds no structure")


@checkpoint.command(name="import", cls=SpreadReferences)
def import_(
    file: Annotated[Path, typer.Argument(help="Released checkpoint, such as jmp-s.pt.")],
    target: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")],
    weights: Annotated[
        Literal["ema", "live"], typer.Option(help="Averaged weights, from which JMP fine-tunes, or the live ones only.")
    ] = "ema",
    references: Annotated[
        list[str] | None,
        typer.Option(_REFERENCES, metavar="DATASET...", help="Training splits whose fitted element references to add."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole key map as JSON.")] = False,
) -> None:
    """Turn a released .pt file into a checkpoint of ours; nothing in the file is executed.

    Example: jmp checkpoint import jmp-s.pt --out jmp-s --references shards/*/train/manifest.json
    """
    from jmp_model.train.checkpoint import write_checkpoint
    from jmp_model.weights.convert import fitted_references, import_released

    _check_new(target)
    imported = import_released(file, weights=weights, references=fitted_references(references or ()))
    write_checkpoint(imported.checkpoint, target)
    foreign = dict(imported.foreign)
    if as_json:
        print_json({"checkpoint": str(target), **_key_report(imported.keys), "left_unread": foreign})
        return
    _print_keys(imported.keys)
    if foreign:
        out.print(f"left unread: {', '.join(f'{count} × {name}' for name, count in foreign.items())}", markup=False)
    for normalizer in imported.checkpoint.normalizers:
        out.print(f"{normalizer.task}: {normalizer.origin}", markup=False)
    out.print(f"written to {target}", markup=False)


@checkpoint.command()
def export(
    source: Annotated[Path, typer.Argument(help="Pre-training checkpoint or run folder.")],
    target: Annotated[Path, typer.Option("--out", help="File to write, such as mine.pt.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole key map as JSON.")] = False,
) -> None:
    """Write a pre-training checkpoint in the released layout, for programs that read it.

    Example: jmp checkpoint export run --out mine.pt
    """
    from jmp_model.weights.any_checkpoint import read_any_checkpoint
    from jmp_model.weights.convert import export_released

    _check_new(target)
    keys = export_released(read_any_checkpoint(source), target)
    if as_json:
        print_json({"file": str(target), **_key_report(keys)})
        return
    _print_keys(keys)
    out.print(
        f"written to {target}; references and normalisers are under the key jmp, which other programs do not read",
        markup=False,
    )


def _check_new(target: Path) -> None:
    if target.exists():
        raise ManifestError(f"{target}: exists already; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)


def _key_report(keys: KeyMap) -> dict[str, Any]:
    return {"keys": keys.kinds(), "mapped": keys.mapped, "unmapped": keys.unmapped}


def _print_keys(keys: KeyMap) -> None:
    kinds = keys.kinds()
    print_table("Keys of the released layout", ["kind", "keys"], [[kind, count] for kind, count in kinds.items()])
    tensors = len(set(keys.mapped.values()))
    out.print(f"{len(keys.mapped)} keys map onto {tensors} tensors; {len(keys.unmapped)} do not map:", markup=False)
    for name, reason in keys.unmapped.items():
        out.print(f"  {name}: {reason}", markup=False)


@checkpoint.command()
def inspect(
    source: Annotated[Path, typer.Argument(help="Checkpoint, run folder or released .pt file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show model, tasks, references, normalisers and provenance of a checkpoint.

    Example: jmp checkpoint inspect run
    """
    from jmp_model.inspection import describe_checkpoint, open_for_inspection

    facts = describe_checkpoint(open_for_inspection(source))
    if as_json:
        print_json(facts)
        return
    tasks = facts.pop("tasks")
    print_facts({name: _short(value) for name, value in facts.items()})
    for task in tasks:
        out.print()
        print_facts({name: _short(value) for name, value in task.items()})


def _short(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else value


def fit_scales(
    mix: Annotated[Path, typer.Option(help="Mixture file of jmp-data mix.")],
    target: Annotated[Path, typer.Option("--out", help="JSON file to write.")],
    model: Annotated[
        Literal["tiny", "small", "large"] | None, typer.Option(help="small is JMP-S, large JMP-L.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe file, or the name of one that ships.")] = None,
    set_values: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe; repeat.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the factors as JSON.")] = False,
) -> None:
    """Fit the scale factors of a new model on a mixture, as pre-training from scratch does by itself.

    Example: jmp fit-scales --mix mix.yaml --model tiny --out scales.json
    """
    from jmp_model.train.config import load_pretrain_config
    from jmp_model.weights.scales import fit_scales as fit
    from jmp_model.weights.scales import write_scales

    _check_new(target)
    config = load_pretrain_config(recipe, overrides=set_values or (), mix=mix, out=target.parent, model=model)
    with progress("fit scales", None, "passes") as advance:
        scales = fit(config, on_stage=lambda done, total: advance(1, f"of {total}"))
    write_scales(scales, target)
    if as_json:
        print_json(scales.factors)
        return
    print_table("Scale factors", ["layer", "factor"], [[name, f"{v:.4f}"] for name, v in scales.factors.items()])
    out.print(
        f"fitted on {scales.batches} batches of {scales.batch_size} structures; written to {target}", markup=False
    )
