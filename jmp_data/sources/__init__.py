"""The data sets by name, `source:part` for one molecule, task or subset of them; a user's own by its YAML file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from jmp_data.errors import ManifestError
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources.facts import SourceFacts, is_own_manifest, source_facts
from jmp_data.sources.protocol import Item, Part, Quarantined, Skipped, Source, SplitPlan

__all__ = [
    "Item",
    "Part",
    "Quarantined",
    "Skipped",
    "Source",
    "SourceFacts",
    "SplitPlan",
    "expand_source",
    "get_source",
    "is_own_manifest",
    "raw_folder",
    "source_facts",
    "source_names",
]

# Imported when asked for: `jmp-data list` must not load HDF5, LMDB and a compiler.
# A class with several parts has a tuple `parts` and takes `part=`; every class takes `constants=`.
_CLASSES = {
    "oc20": "jmp_data.sources.oc20:OC20",
    "oc22": "jmp_data.sources.oc22:OC22",
    "ani1x": "jmp_data.sources.ani1x:ANI1x",
    "transition1x": "jmp_data.sources.transition1x:Transition1x",
    "qm9": "jmp_data.sources.qm9:QM9",
    "rmd17": "jmp_data.sources.rmd17:RMD17",
    "matbench": "jmp_data.sources.matbench:MatBench",
    "qmof": "jmp_data.sources.qmof:QMOF",
    "spice": "jmp_data.sources.spice:Spice",
    "md22": "jmp_data.sources.md22:MD22",
}


def source_names() -> tuple[str, ...]:
    """Names of all sources, in the order of the paper, without parts."""
    return tuple(_CLASSES)


def expand_source(name: str) -> tuple[str, ...]:
    """Names to build for a name on the command line: all parts of a source that has parts, else the name itself.

    A YAML file of a user's own data stands for itself, by its full path, which means the same on every worker.

    Raises:
        ManifestError: there is no such source or part.
    """
    if is_own_manifest(name):
        return (str(Path(name).absolute()),)
    source, _, part = name.partition(":")
    parts = _parts(source)
    if not part:
        return tuple(f"{source}:{each}" for each in parts) or (source,)
    if part not in parts:
        has = f"its parts are {', '.join(parts)}" if parts else "it has no parts"
        raise ManifestError(f"{source} has no part {part!r}; {has}")
    return (name,)


def get_source(name: str, *, constants: ConstantSet = CODATA_2014) -> Source:
    """The source of that name.

    Args:
        name: `source`, `source:part` for one of several parts, or the path of a user's YAML file.
        constants: what hartree, bohr and kcal/mol are worth.

    Raises:
        ManifestError: there is no such source or part, or the part is not given.
    """
    if is_own_manifest(name):
        own: Source = import_module("jmp_data.own_data.source").OwnData(Path(name), constants=constants)
        return own
    names = expand_source(name)
    if names != (name,):
        raise ManifestError(f"{name} has several parts; name one of {', '.join(names)}")
    source, _, part = name.partition(":")
    arguments = {"part": part} if part else {}
    built: Source = _load_class(source)(constants=constants, **arguments)
    return built


def raw_folder(name: str, raw: Path) -> Path:
    """The folder that a source's files are relative to.

    Args:
        name: source name, or the path of a user's YAML file.
        raw: folder with the published files.

    Returns:
        `raw`; for a user's own data the folder of the YAML, unless the files are not there but in `raw`.
    """
    if not is_own_manifest(name):
        return raw
    folder: Path = get_source(name).raw_folder(raw)  # type: ignore[attr-defined]
    return folder


def _parts(source: str) -> tuple[str, ...]:
    return tuple(getattr(_load_class(source), "parts", ()))


def _load_class(source: str) -> Any:
    if source not in _CLASSES:
        raise ManifestError(f"no source {source!r}; there are {', '.join(_CLASSES)}")
    module, _, name = _CLASSES[source].partition(":")
    return getattr(import_module(module), name)
